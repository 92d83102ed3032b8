"""SSE-PT and SASRec sequential recommenders on fused C++ and CUDA kernels."""

import sys
from os.path import basename

# In the command `ssept`, this package has no names. Its modules import torch, which takes seconds, once the command has
# started, so that it answers --help at once, and Ctrl-C in the meantime.
_started = basename("".join(sys.argv[:1]))
if not (_started in ("ssept", "ssept.exe") or (_started == "-m" and "ssept_ext" in sys.orig_argv)):
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
