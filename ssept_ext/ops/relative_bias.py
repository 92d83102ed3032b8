"""What distance and time between a query and a key add to attention scores: the reference, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ssept_ext.ops.reference_checks import check_shape

TIME_BUCKETS = 128
"""Columns of a time bias, as many as two for each factor of 2 of any int64 need."""


def time_buckets(between: Tensor) -> Tensor:
    """Number each time between a query and a key by its magnitude: two buckets for each factor of 2.

    HSTU (Zhai et al., ICML 2024) has 2.3 for each factor of 2, by a logarithm. These are found without one, from the
    exponent and the first bit of the mantissa, so that they are the same on every device.

    Parameters
    ----------
    between
        int64 of any shape. Shorter times than 1 count as 1.

    Returns
    -------
    Tensor
        int64 of the same shape, in 0..127.

    Examples
    --------
    >>> time_buckets(torch.tensor([-5, 0, 1, 2, 3, 4, 5, 6, 3600]))
    tensor([ 0,  0,  0,  2,  3,  4,  4,  5, 23])
    """
    bits = between.clamp_min(1).to(torch.float32).view(torch.int32)
    return ((bits >> 22) - 2 * 127).long()


def relative_bias(
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    distances: Tensor,
    between: Tensor | None,
) -> Tensor | float:
    """Look up the biases of pairs of queries and keys, by distances (B, Tq, Tk) and times of the same shape.

    Returns (B, H, Tq, Tk), or 0 where there is no bias. Pairs that are not visible may have any distance.
    """
    bias: Tensor | float = 0.0
    if position_bias is not None:
        bias = position_bias[:, distances.clamp(0, position_bias.shape[1] - 1)].transpose(0, 1)
    if time_bias is not None:
        assert between is not None
        bias = bias + time_bias[:, time_buckets(between)].transpose(0, 1)
    return bias


def empty_gradients(
    position_bias: Tensor | None = None, time_bias: Tensor | None = None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Make what backwards return for the biases: float32 or wider, and without rows where there is no bias."""
    wide = torch.promote_types(like.dtype, torch.float32)
    of_position = (0, 0) if position_bias is None else position_bias.shape
    of_time = (0, TIME_BUCKETS) if time_bias is None else time_bias.shape
    return like.new_empty(of_position, dtype=wide), like.new_empty(of_time, dtype=wide)


def check_relative_bias(
    q: Tensor,
    k: Tensor,
    max_seqlen_k: int,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_times: Tensor | None,
    key_times: Tensor | None,
) -> None:
    """Raise a ValueError that names the first argument of the wrong shape or dtype."""
    wide = torch.promote_types(q.dtype, torch.float32)
    if position_bias is not None:
        _check_type("position_bias", position_bias, wide)
        check_shape("position_bias", position_bias, (q.shape[1], *position_bias.shape[1:2]))
        if position_bias.shape[1] < max_seqlen_k:
            raise ValueError(
                f"position_bias must have at least {max_seqlen_k} columns, one for each distance, got "
                f"shape {tuple(position_bias.shape)}"
            )
    given = {x is not None for x in (time_bias, query_times, key_times)}
    if len(given) > 1:
        raise ValueError("time_bias, query_times and key_times must be given together")
    if time_bias is None or query_times is None or key_times is None:
        return
    _check_type("time_bias", time_bias, wide)
    check_shape("time_bias", time_bias, (q.shape[1], TIME_BUCKETS))
    for name, times, x in (("query_times", query_times, q), ("key_times", key_times, k)):
        _check_type(name, times, torch.int64)
        check_shape(name, times, (x.shape[0],))


def _check_type(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {x.dtype}")
