"""Checks of arguments that the ops in plain PyTorch share; errors name the argument, its value and the limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def checked_ids(
    name: str, ids: Tensor, size: int, real: Tensor | None = None, padding: bool = False
) -> Tensor:
    """Set the ids of tail padding to 0. Other ids outside 0..size-1 raise an IndexError (CPU) or become 0.

    With `padding`, 0 is never outside.
    """
    wrong = (ids < 0) | (ids >= max(size, int(padding)))
    if real is not None:
        ids, wrong = torch.where(real, ids, 0), wrong & real
    if ids.device.type == "cpu" and not torch.compiler.is_compiling() and wrong.any():
        bad = int(ids[wrong][0])
        raise IndexError(f"{name} has id {bad}, outside its table of {size} rows (0..{size - 1})")
    return torch.where(wrong, 0, ids)


def check_dims(name: str, x: Tensor, dims: int) -> None:
    if x.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, got shape {tuple(x.shape)}")


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def check_packed(
    tokens: Tensor, cu_seqlens: Tensor, name: str = "cu_seqlens", max_seqlen: int | None = None
) -> int:
    """Check that `cu_seqlens` describes the rows of `tokens`; returns N."""
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise ValueError(
            f"{name} must be int32 of shape (B + 1,), got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if max_seqlen is not None and max_seqlen < 0:
        raise ValueError(
            f"{name.replace('cu_seqlens', 'max_seqlen')} must be at least 0, got {max_seqlen}"
        )
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        lengths = cu_seqlens.long().diff()
        if cu_seqlens[0] != 0 or (lengths < 0).any() or cu_seqlens[-1] > tokens.shape[0]:
            raise ValueError(
                f"{name} must rise from 0 to at most {tokens.shape[0]} tokens, got {cu_seqlens.tolist()}"
            )
        if max_seqlen is not None and lengths.numel() and int(lengths.max()) > max_seqlen:
            raise ValueError(
                f"max_seqlen of {name} is {max_seqlen}, but a sequence has {int(lengths.max())} tokens"
            )
    return tokens.shape[0]


def check_ids_type(name: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {ids.dtype}")


def check_loss(loss: str, beta: float) -> None:
    if loss not in ("bce", "bpr", "sampled_softmax"):
        raise ValueError(f"loss must be bce, bpr or sampled_softmax, got {loss}")
    if not -math.inf < beta < math.inf:  # which torch.compile can trace
        raise ValueError(f"beta must be finite, got {beta}")


def check_users(user_weight: Tensor | None, users: Tensor | None, cu_seqlens: Tensor) -> int:
    """Check that users and their table are given together; returns Du."""
    if (user_weight is None) != (users is None):
        raise ValueError("user_weight and users must be given together")
    if user_weight is None or users is None:
        return 0
    check_ids_type("users", users)
    check_dims("user_weight", user_weight, 2)
    check_shape("users", users, (cu_seqlens.shape[0] - 1,))
    return user_weight.shape[1]


def check_same_type(**tensors: Tensor | None) -> None:
    dtypes = {name: x.dtype for name, x in tensors.items() if x is not None}
    if len(set(dtypes.values())) != 1 or not all(d.is_floating_point for d in dtypes.values()):
        listing = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"all of these must have one floating-point type: {listing}")
