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
    layers = (x, weight1, bias1, weight2, bias2)
    settings = (dropout_p, seed, site)
    return _call(layers, settings, residual, None, None, 0.0, backend)[0]


def feed_forward_and_norm(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    residual: Tensor | None = None,
    eps: float = 1e-8,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `feed_forward` and its layer norm, with which the next block of an encoder begins.

    Parameters
    ----------
    x, weight1, bias1, weight2, bias2, dropout_p, seed, site, residual, backend
        As in `feed_forward`.
    gamma, beta
        (D,), same dtype as x, or any under autocast.
    eps
        Added to the variance for numerical stability.

    Returns
    -------
    out
        (N, D), what `feed_forward` returns.
    normal
        (N, D), `gamma * (out - mean) / sqrt(variance + eps) + beta`, with the mean and the biased variance of each row,
        tail padding included.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.

    Examples
    --------
    >>> x, one, zeros = torch.tensor([[-2.0, 3.0]]), torch.eye(2), torch.zeros(2)
    >>> feed_forward_and_norm(x, one, zeros, one, zeros, torch.ones(2), zeros)
    (tensor([[-2.,  6.]]), tensor([[-1.,  1.]]))
    """
    layers = (x, weight1, bias1, weight2, bias2)
    settings = (dropout_p, seed, site)
    return _call(layers, settings, residual, gamma, beta, eps, backend)


def _call(
    layers: tuple[Tensor, ...],
    settings: tuple[Any, ...],
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    backend: Backend | None,
) -> tuple[Tensor, Tensor]:
    """Return the result, and its layer norm, which has no rows without gamma and beta."""
    device = layers[0].device
    dtype = autocast_type(device)
    optional = (x if x is None else cast(x, dtype) for x in (residual, gamma, beta))
    args = (*(cast(x, dtype) for x in layers), *settings, *optional, eps)
    out, _, normal = call("feed_forward", device, backend, *args)
    return out, normal


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).feed_forward_backward

    def fake(x: Tensor, weight1: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, ...]:
        gamma = named.get("gamma", rest[7] if len(rest) > 7 else None)
        normal = x.new_empty(0 if gamma is None else x.shape[0], x.shape[1])
        return x.new_empty(x.shape), x.new_empty(x.shape[0], weight1.shape[0]), normal

    def fake_backward(
        _: Tensor | None,
        x: Tensor,
        __: Tensor,
        weight1: Tensor,
        ___: Tensor,
        dropout_p: float,
        seed: Tensor | None,
        site: int,
        x_is_residual: bool,
        out: Tensor | None = None,
        grad_normal: Tensor | None = None,
        gamma: Tensor | None = None,
        *____: Any,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(x.dtype, torch.float32)
        inner, width = weight1.shape
        of_norm = 0 if gamma is None else width
        return (
            x.new_empty(x.shape),
            x.new_empty(inner, width),
            x.new_empty(inner, dtype=wide),
            x.new_empty(width, inner),
            x.new_empty(width, dtype=wide),
            x.new_empty(0 if gamma is None or x_is_residual else x.shape[0], width),
            *(x.new_empty(of_norm, dtype=wide) for _ in range(2)),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight1, _, weight2, _, ctx.dropout_p, seed, ctx.site, residual, gamma, _, ctx.eps = (
            inputs
        )
        out, hidden, normal = output
        ctx.x_is_residual = residual is None
        ctx.mark_non_differentiable(*((hidden, normal) if gamma is None else (hidden,)))
        ctx.set_materialize_grads(False)  # no zeros as the gradient of `hidden`
        for_norm = (None, None) if gamma is None else (out, gamma)
        ctx.save_for_backward(x, hidden, weight1, weight2, seed, *for_norm)

    def backward(
        ctx: Any, grad: Tensor | None, _: None, grad_normal: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad is None and grad_normal is None:
            return (None,) * 12
        *saved, seed, out, gamma = ctx.saved_tensors
        of_norm = (None, None, None) if grad_normal is None else (out, grad_normal, gamma)
        settings = (ctx.dropout_p, seed, ctx.site, ctx.x_is_residual)
        *gradients, of_residual, of_gamma, of_beta = (
            g.to(saved[0].dtype) for g in backward_op(grad, *saved, *settings, *of_norm, ctx.eps)
        )
        if grad_normal is None:
            of_residual, of_gamma, of_beta = grad, None, None
        of_residual = None if ctx.x_is_residual else of_residual
        return *gradients, None, None, None, of_residual, of_gamma, of_beta, None

    register_op(
        namespace,
        "feed_forward",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
