"""SSE-PT and SASRec sequential recommenders on fused C++ and CUDA kernels."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssept_ext._extension import build_info, set_backend
    from ssept_ext.data.dataset import SASRecDataSet
    from ssept_ext.data.id_map import IdMap
    from ssept_ext.data.interactions import Interactions
    from ssept_ext.data.item_features import ItemFeatures
    from ssept_ext.data.packed import PackedBatch, pack
    from ssept_ext.models import SASREC, SSEPT
    from ssept_ext.sampling.sampler import WarpSampler

__all__ = [
    "SASREC",
    "SSEPT",
    "IdMap",
    "Interactions",
    "ItemFeatures",
    "PackedBatch",
    "SASRecDataSet",
    "WarpSampler",
    "build_info",
    "pack",
    "set_backend",
]

_MODULES = {
    "SASREC": "models",
    "SSEPT": "models",
    "IdMap": "data.id_map",
    "Interactions": "data.interactions",
    "ItemFeatures": "data.item_features",
    "PackedBatch": "data.packed",
    "SASRecDataSet": "data.dataset",
    "WarpSampler": "sampling.sampler",
    "build_info": "_extension",
    "pack": "data.packed",
    "set_backend": "_extension",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # with a __getattr__, type checkers would take any name

    def __getattr__(name: str) -> Any:
        """Import a name, or a package such as `ops`, when it is first used: importing torch takes seconds."""
        if name in _MODULES:
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        if find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
