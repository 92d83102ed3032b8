"""SSE-PT and SASRec sequential recommenders on fused C++ and CUDA kernels."""

from ssept_ext._extension import build_info, set_backend
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.packed import PackedBatch, pack
from ssept_ext.models import SASREC, SSEPT
from ssept_ext.sampling.sampler import WarpSampler

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
