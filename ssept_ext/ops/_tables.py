"""Types and gradients, shared by the ops that score items of embedding tables."""

from __future__ import annotations

import torch
from torch import Tensor

from ssept_ext.ops._native import autocast_type


def widened(hidden: Tensor, item_weight: Tensor) -> Tensor:
    """Widen hidden states under autocast to the tables' dtype, so that neither logits nor gradients are rounded."""
    if autocast_type(hidden.device) is None:
        return hidden
    return hidden.to(torch.promote_types(hidden.dtype, item_weight.dtype))


def in_types_of_tables(
    gradients: tuple[Tensor, Tensor, Tensor], item_weight: Tensor, user_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of hidden states, items and users, those of the tables in the tables' types."""
    hidden, item, user = gradients
    of_users = None if user_weight is None else user.to(user_weight.dtype)
    return hidden, item.to(item_weight.dtype), of_users


def fixed_order(items: Tensor) -> Tensor | None:
    """Return the permutation that makes the sum of item gradients deterministic, or None if none is needed.

    It is a stable argsort of all ids. The CPU kernels are deterministic without it; the CUDA kernels use atomics.
    """
    if items.is_cuda and torch.are_deterministic_algorithms_enabled():
        return items.flatten().argsort(stable=True)
    return None
