"""What the ops with tables share: gradients of rows that occur many times."""

from __future__ import annotations

import torch
from torch import Tensor


def fixed_order(items: Tensor) -> Tensor | None:
    """In what order to sum the gradients of items, where it must be fixed: a stable argsort of all ids, or None.

    The CPU kernels sum in a fixed order without it, the CUDA kernels by atomics.
    """
    if items.is_cuda and torch.are_deterministic_algorithms_enabled():
        return items.flatten().argsort(stable=True)
    return None


def gradient_of_user_table(
    user_weight: Tensor | None, users: Tensor | None, grad_by_sequence: Tensor
) -> Tensor | None:
    """Sum (B, Du) gradients of sequences into the rows of their users.

    Kernels give zeros for sequences without a valid user; those go to row 0.
    """
    if user_weight is None or users is None:
        return None
    rows = users.where((users > 0) & (users < user_weight.shape[0]), 0)
    table = grad_by_sequence.new_zeros(user_weight.shape)
    return table.index_add_(0, rows, grad_by_sequence).to(user_weight.dtype)
