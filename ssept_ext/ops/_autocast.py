"""What the ops do under `torch.autocast`: see `ssept_ext.ops`."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that `torch.autocast` asks for on this device; None outside of it."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """In `dtype`, unless that is None; float64 is left as it is, as torch's autocast leaves it."""
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast out of the reference ops, whose inner products are meant in float32."""
    return torch.autocast(device.type, enabled=False)
