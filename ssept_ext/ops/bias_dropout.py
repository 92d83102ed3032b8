"""The op `bias_dropout`: the elementwise steps after a matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, register_op


def bias_dropout(
    x: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute `residual + dropout(act(x + bias))` in one pass, where act is a ReLU or the identity.

    The dropout mask depends only on (seed, site, row, column).

    Parameters
    ----------
    x
        (N, C) float16, bfloat16, float32 or float64: the result of a matrix product.
    bias
        (C,), same dtype, or any under autocast.
    residual
        (N, C), same dtype as `bias`, or None. Cannot be combined with `relu`.
    relu
        Whether to apply a ReLU to `x + bias`.
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
    >>> bias_dropout(torch.tensor([[-2.0, 3.0]]), bias=torch.ones(2), relu=True)
    tensor([[0., 4.]])
    """
    dtype = autocast_type(x.device)
    x, bias = cast(x, dtype), cast(bias, dtype)
    residual = None if residual is None else cast(residual, dtype)
    args = (x, bias, residual, relu, dropout_p, seed, site)
    return call("bias_dropout", x.device, backend, *args)  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).bias_dropout_backward

    def fake(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.new_empty(x.shape)

    def fake_backward(grad: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(grad.dtype, torch.float32)
        return grad.new_empty(grad.shape), grad.new_empty(grad.shape[1], dtype=wide)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, residual, ctx.relu, ctx.dropout_p, seed, ctx.site = inputs
        ctx.has_residual = residual is not None
        ctx.save_for_backward(output, seed)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, seed = ctx.saved_tensors
        grad_x, grad_bias = backward_op(grad, out, ctx.relu, ctx.dropout_p, seed, ctx.site)
        grad_residual = grad if ctx.has_residual else None
        return grad_x, grad_bias.to(grad.dtype), grad_residual, None, None, None, None

    register_op(
        namespace,
        "bias_dropout",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
