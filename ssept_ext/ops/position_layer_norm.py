"""The op `position_layer_norm`: layer norm with its own gamma and beta at each position, or with one for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, register_op


def position_layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    eps: float = 1e-8,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute `gamma[t] * (x - mean) / sqrt(variance + eps) + beta[t]`, where t is the token's position.

    The mean and the biased variance are over the features. This is the layer norm of recommenders' classes, whose
    parameters have shape (T, D). With parameters of shape (D,), the usual layer norm, all positions have the same.

    Parameters
    ----------
    x
        (N, D) float16, bfloat16, float32 or float64.
    gamma, beta
        (T, D) or (D,), same dtype, or any under autocast.
    positions
        (N,) int64 in 0..T-1; not read for parameters of shape (D,).
    cu_seqlens
        (B + 1,) int32 offsets of the sequences.
    eps
        Added to the variance for numerical stability.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    Tensor
        (N, D), same dtype; zeros for tail padding, the tokens from `cu_seqlens[B]` on.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.
    IndexError
        If a position is outside 0..T-1; names it and T. On CUDA it counts as 0 and the error is raised by the next
        `ssept_ext.ops.raise_pending_errors`.

    Examples
    --------
    >>> x, offsets = torch.tensor([[1.0, 3.0]]), torch.tensor([0, 1], dtype=torch.int32)
    >>> position_layer_norm(x, torch.ones(5, 2), torch.zeros(5, 2), torch.tensor([4]), offsets)
    tensor([[-1.,  1.]])
    """
    x, gamma, beta = (cast(t, autocast_type(x.device)) for t in (x, gamma, beta))
    args = (x, gamma, beta, positions, cu_seqlens, eps)
    return call("position_layer_norm", x.device, backend, *args)  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).position_layer_norm_backward

    def fake(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.new_empty(x.shape)

    def fake_backward(
        grad: Tensor, x: Tensor, gamma: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        return (
            x.new_empty(x.shape),
            gamma.new_empty(gamma.shape, dtype=wide),
            gamma.new_empty(gamma.shape, dtype=wide),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gamma = ctx.saved_tensors[1]
        grad_x, grad_gamma, grad_beta = backward_op(grad, *ctx.saved_tensors, ctx.eps)
        return grad_x, grad_gamma.to(gamma.dtype), grad_beta.to(gamma.dtype), None, None, None

    register_op(
        namespace,
        "position_layer_norm",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
