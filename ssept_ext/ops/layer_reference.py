"""What follows attention in a block, in plain PyTorch: a part of `reference.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext.ops.dropout import check_dropout, dropout
from ssept_ext.ops.reference_checks import check_dims, check_same_type, check_shape


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
) -> tuple[Tensor, Tensor]:
    """Two linear layers with ReLU, dropouts and a residual, x by default: see `ssept_ext.ops`.

    Also returns what the first dropout gives, (N, C), without gradient.
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
    check_same_type(
        x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, residual=residual
    )
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden = F.relu(F.linear(x.to(wide), weight1.to(wide), bias1.to(wide)))
    hidden = dropout(hidden, dropout_p, seed, site)
    y = F.linear(hidden, weight2.to(wide), bias2.to(wide))
    out = dropout(y, dropout_p, seed, site + 1) + residual
    return out.to(x.dtype), hidden.to(x.dtype).detach()


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
