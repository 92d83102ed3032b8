"""Gradients of embedding tables, shared by the ops that read tables."""

from __future__ import annotations

import torch
from torch import Tensor


def fixed_order(items: Tensor) -> Tensor | None:
    """Return the permutation that makes the sum of item gradients deterministic, or None if none is needed.

    It is a stable argsort of all ids. The CPU kernels are deterministic without it; the CUDA kernels use atomics.
    """
    if items.is_cuda and torch.are_deterministic_algorithms_enabled():
        return items.flatten().argsort(stable=True)
    return None


def gradient_of_user_table(
    user_weight: Tensor | None, users: Tensor | None, grad_by_sequence: Tensor
) -> Tensor | None:
    """Add the (B, Du) gradients of sequences to the rows of their users.

    Sequences without a valid user have zero gradients, which are added to row 0.
    """
    if user_weight is None or users is None:
        return None
    rows = users.where((users > 0) & (users < user_weight.shape[0]), 0)
    table = grad_by_sequence.new_zeros(user_weight.shape)
    return table.index_add_(0, rows, grad_by_sequence).to(user_weight.dtype)
