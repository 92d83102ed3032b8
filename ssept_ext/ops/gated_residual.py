"""The op `gated_residual`: the end of a branch of an encoder block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, register_op


def gated_residual(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute `x + sigmoid(gate) * dropout(y)`, or `x + dropout(y)` without a gate.

    This is how LiGR (Borisyuk et al. 2025, https://arxiv.org/abs/2502.03417) adds the output y of a branch to the
    branch's input x. The dropout mask depends only on (seed, site, row, column).

    Parameters
    ----------
    x
        (N, D) float16, bfloat16, float32 or float64, or any under autocast.
    y
        (N, D), same dtype.
    gate
        (N, D), same dtype: the gate before its sigmoid.
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
        (N, D), same dtype.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.

    Examples
    --------
    >>> x, y, gate = torch.tensor([[[1.0, 1.0]], [[4.0, 4.0]], [[0.0, -100.0]]])
    >>> gated_residual(x, y, gate)  # half of y, and nothing of it
    tensor([[3., 1.]])
    """
    dtype = autocast_type(x.device)
    tensors = (x if x is None else cast(x, dtype) for x in (x, y, gate))
    args = (*tensors, dropout_p, seed, site)
    return call("gated_residual", x.device, backend, *args)  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).gated_residual_backward

    def fake(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.new_empty(x.shape)

    def fake_backward(
        grad: Tensor, _: Tensor | None, gate: Tensor | None, *__: Any
    ) -> tuple[Tensor, Tensor]:
        rows, width = grad.shape
        return grad.new_empty(rows, width), grad.new_empty(0 if gate is None else rows, width)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, y, gate, ctx.dropout_p, seed, ctx.site = inputs
        ctx.save_for_backward(None if gate is None else y, gate, seed)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, seed = ctx.saved_tensors
        grad_y, grad_gate = backward_op(grad, y, gate, ctx.dropout_p, seed, ctx.site)
        return grad, grad_y, None if gate is None else grad_gate, None, None, None

    register_op(
        namespace,
        "gated_residual",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
