"""What is around attention in a block, in plain PyTorch: a part of `reference.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext.ops.dropout import check_dropout, dropout
from ssept_ext.ops.packing import embedding, sequence_of_token
from ssept_ext.ops.reference_checks import (
    check_dims,
    check_ids_type,
    check_packed,
    check_same_type,
    check_shape,
    checked_ids,
)


def position_layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    eps: float = 1e-8,
) -> Tensor:
    """Layer norm with its own gamma and beta at each position, or one for all: see `ssept_ext.ops`."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    check_dims("x", x, 2)
    by_position = gamma.dim() != 1
    check_dims("gamma", gamma, 1 + by_position)
    num_tokens = check_packed(x, cu_seqlens)
    check_shape("gamma", gamma, (*gamma.shape[:by_position], x.shape[1]))
    check_shape("beta", beta, tuple(gamma.shape))
    check_ids_type("positions", positions)
    check_shape("positions", positions, (num_tokens,))
    check_same_type(x=x, gamma=gamma, beta=beta)
    _, real = sequence_of_token(cu_seqlens, num_tokens)
    if by_position:
        positions = checked_ids("positions", positions, gamma.shape[0], real)
        gamma, beta = embedding(positions, gamma), embedding(positions, beta)
    wide = torch.promote_types(x.dtype, torch.float32)
    real = real[:, None]
    normal = F.layer_norm(torch.where(real, x, 0).to(wide), x.shape[1:], eps=eps)
    normal = torch.where(real, normal, 0)  # NaN where eps is 0
    out = gamma * normal + beta
    return torch.where(real, out, 0).to(x.dtype)


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
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two linear layers with ReLU, dropouts and a residual, x by default: see `ssept_ext.ops`.

    Also returns what the first dropout gives, (N, C), without gradient; and the layer norm of the result, without rows
    if there is no gamma.
    """
    check_dropout(dropout_p, seed, site)
    check_dropout(dropout_p, seed, site + 1)
    check_dims("x", x, 2)
    check_dims("weight1", weight1, 2)
    inner, width = weight1.shape[0], x.shape[1]
    check_shape("weight1", weight1, (inner, width))
    check_shape("bias1", bias1, (inner,))
    check_shape("weight2", weight2, (width, inner))
    check_shape("bias2", bias2, (width,))
    residual = x if residual is None else residual
    check_shape("residual", residual, tuple(x.shape))
    if (gamma is None) != (beta is None):
        raise ValueError("gamma and beta must be given together")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    tensors = {"x": x, "weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    check_same_type(**tensors, residual=residual, gamma=gamma, beta=beta)
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden = F.relu(F.linear(x.to(wide), weight1.to(wide), bias1.to(wide)))
    hidden = dropout(hidden, dropout_p, seed, site)
    y = F.linear(hidden, weight2.to(wide), bias2.to(wide))
    out = (dropout(y, dropout_p, seed, site + 1) + residual).to(x.dtype)
    normal = out.new_empty(0, width)
    if gamma is not None and beta is not None:
        check_shape("gamma", gamma, (width,))
        check_shape("beta", beta, (width,))
        normal = F.layer_norm(out.to(wide), (width,), gamma.to(wide), beta.to(wide), eps)
    return out, hidden.to(x.dtype).detach(), normal.to(x.dtype)


def gated_residual(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """`x + sigmoid(gate) * dropout(y)`: see `ssept_ext.ops`."""
    check_dropout(dropout_p, seed, site)
    check_dims("x", x, 2)
    check_shape("y", y, tuple(x.shape))
    check_same_type(x=x, y=y, gate=gate)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = dropout(y.to(wide), dropout_p, seed, site)
    if gate is not None:
        check_shape("gate", gate, tuple(x.shape))
        y = gate.to(wide).sigmoid() * y
    return (x + y).to(x.dtype)


def swiglu(u: Tensor, dropout_p: float = 0.0, seed: Tensor | None = None, site: int = 0) -> Tensor:
    """`dropout(silu(a) * b)` of the halves of u: see `ssept_ext.ops`."""
    check_dropout(dropout_p, seed, site)
    check_dims("u", u, 2)
    if u.shape[1] % 2:
        raise ValueError(f"u must have an even number of columns, got shape {tuple(u.shape)}")
    check_same_type(u=u)
    a, b = u.to(torch.promote_types(u.dtype, torch.float32)).chunk(2, 1)
    return dropout(F.silu(a) * b, dropout_p, seed, site).to(u.dtype)
