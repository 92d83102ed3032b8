"""Casts of the ops under `torch.autocast`; see `ssept_ext.ops`."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the dtype of `torch.autocast` on this device, or None if it is off."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast to `dtype`, unless it is None or x is float64, which torch's autocast never casts either."""
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)
