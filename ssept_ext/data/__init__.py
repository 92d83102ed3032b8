"""Reading events, keeping histories, and packing batches."""

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.item_features import ItemFeatures
from ssept_ext.data.packed import PackedBatch, pack
from ssept_ext.data.synthetic import synthetic

__all__ = [
    "Histories",
    "IdMap",
    "Interactions",
    "ItemFeatures",
    "PackedBatch",
    "SASRecDataSet",
    "pack",
    "synthetic",
]
