"""The op `swiglu`: the activation of a feed-forward layer that gates itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, register_op


def swiglu(
    u: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute `dropout(silu(a) * b)`, where a is the left half of the columns of u and b the right one.

    With u = x @ [W1; W2].T this is SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202). silu(a) is
    a * sigmoid(a). The dropout mask depends only on (seed, site, row, column of the result).

    Parameters
    ----------
    u
        (N, 2 C) float16, bfloat16, float32 or float64, or any under autocast.
    dropout_p
        Probability in [0, 1) that an element is dropped; the rest are scaled by 1 / (1 - dropout_p).
    seed
        (1,) int64 dropout seed; required if dropout_p > 0.
    site
        Number of this dropout in the model: different sites have independent masks.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    Tensor
        (N, C), same dtype.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.

    Examples
    --------
    >>> swiglu(torch.tensor([[0.0, 100.0, 7.0, 2.0]]))
    tensor([[  0., 200.]])
    """
    args = (cast(u, autocast_type(u.device)), dropout_p, seed, site)
    return call("swiglu", u.device, backend, *args)  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).swiglu_backward

    def fake(u: Tensor, *_: Any, **__: Any) -> Tensor:
        return u.new_empty(u.shape[0], u.shape[1] // 2)

    def fake_backward(_: Tensor, u: Tensor, *__: Any) -> Tensor:
        return u.new_empty(u.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.dropout_p, seed, ctx.site = inputs
        ctx.save_for_backward(u, seed)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, seed = ctx.saved_tensors
        return backward_op(grad, u, ctx.dropout_p, seed, ctx.site), None, None, None

    register_op(
        namespace,
        "swiglu",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
