"""SSE-PT and SASRec sequential recommenders on fused C++ and CUDA kernels."""

from ssept_ext._extension import build_info, set_backend
from ssept_ext.data import SASRecDataSet
from ssept_ext.id_map import IdMap
from ssept_ext.interactions import Interactions
from ssept_ext.model import SASREC, SSEPT
from ssept_ext.packing import PackedBatch, pack
from ssept_ext.sampler import WarpSampler

__all__ = [
    "SASREC",
    "SSEPT",
    "IdMap",
    "Interactions",
    "PackedBatch",
    "SASRecDataSet",
    "WarpSampler",
    "build_info",
    "pack",
    "set_backend",
]
