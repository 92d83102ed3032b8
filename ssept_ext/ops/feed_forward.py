"""The op `feed_forward`: the second half of an encoder block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, register_op


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    residual: Tensor | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute `dropout(dropout(relu(x @ weight1.T + bias1)) @ weight2.T + bias2) + residual`.

    The dropout masks depend only on (seed, site, row, column).

    Parameters
    ----------
    x
        (N, D) float16, bfloat16, float32 or float64, or any under autocast.
    weight1
        (C, D), same dtype.
    bias1
        (C,), same dtype.
    weight2
        (D, C), same dtype.
    bias2
        (D,), same dtype.
    dropout_p
        Probability in [0, 1) that an element is dropped; the rest are scaled by 1 / (1 - dropout_p).
    seed
        (1,) int64 dropout seed; required if dropout_p > 0.
    site
        Number of the inner dropout in the model; the outer one is `site + 1`. Different sites have independent masks.
    residual
        (N, D), same dtype; x if not given.
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
    >>> x, one = torch.tensor([[-2.0, 3.0]]), torch.eye(2)
    >>> feed_forward(x, one, torch.zeros(2), one, torch.tensor([0.0, 10.0]))
    tensor([[-2., 16.]])
    """
    dtype = autocast_type(x.device)
    tensors = (cast(tensor, dtype) for tensor in (x, weight1, bias1, weight2, bias2))
    if residual is not None:
        residual = cast(residual, dtype)
    args = (*tensors, dropout_p, seed, site, residual)
    return call("feed_forward", x.device, backend, *args)[0]  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).feed_forward_backward

    def fake(x: Tensor, weight1: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), x.new_empty(x.shape[0], weight1.shape[0])

    def fake_backward(
        _: Tensor, x: Tensor, __: Tensor, weight1: Tensor, weight2: Tensor, *___: Any
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(x.dtype, torch.float32)
        inner, width = weight1.shape
        return (
            x.new_empty(x.shape),
            x.new_empty(inner, width),
            x.new_empty(inner, dtype=wide),
            x.new_empty(width, inner),
            x.new_empty(width, dtype=wide),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight1, _, weight2, _, ctx.dropout_p, seed, ctx.site, residual = inputs
        hidden, ctx.x_is_residual = output[1], residual is None
        ctx.mark_non_differentiable(hidden)
        ctx.set_materialize_grads(False)  # no zeros as the gradient of `hidden`
        ctx.save_for_backward(x, hidden, weight1, weight2, seed)

    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        *saved, seed = ctx.saved_tensors
        gradients = backward_op(grad, *saved, ctx.dropout_p, seed, ctx.site, ctx.x_is_residual)
        of_residual = None if ctx.x_is_residual else grad
        return *(g.to(grad.dtype) for g in gradients), None, None, None, of_residual

    register_op(
        namespace,
        "feed_forward",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
