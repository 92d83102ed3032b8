"""The op `user_item_embedding`: the input of the encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, register_op
from ssept_ext.ops._tables import fixed_order


def user_item_embedding(
    item_weight: Tensor,
    user_weight: Tensor | None,
    position_weight: Tensor,
    items: Tensor,
    users: Tensor | None,
    positions: Tensor,
    cu_seqlens: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Embed N tokens: `concat(item · sqrt(Di), user · sqrt(Du)) + position`, then dropout.

    See Wu et al. 2020, section 3.1, equation 1. The dropout mask depends only on (seed, site, token, feature).

    Parameters
    ----------
    item_weight
        (I + 1, Di) float16, bfloat16, float32 or float64; row 0 is never read.
    user_weight
        (U + 1, Du), same dtype; row 0 is never read. None for SASRec (Du = 0).
    position_weight
        (T, Di + Du), same dtype.
    items
        (N,) int64 in 0..I; 0 has a zero vector.
    users
        (B,) int64 in 0..U; 0 has a zero vector. None if `user_weight` is None.
    positions
        (N,) int64 in 0..T-1.
    cu_seqlens
        (B + 1,) int32 offsets of the sequences.
    dropout_p
        Probability in [0, 1) that a feature is dropped; the rest are scaled by 1 / (1 - dropout_p).
    seed
        (1,) int64 dropout seed; required if dropout_p > 0.
    site
        Number of this dropout in the model: different sites have independent masks.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    Tensor
        (N, Di + Du), same dtype, or autocast's; zeros for tail padding, the tokens from `cu_seqlens[B]` on.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.
    IndexError
        If an id or position is outside its table; names it and the table's size. On CUDA it counts as 0, and the next
        `ssept_ext.ops.raise_pending_errors` raises the error.

    Examples
    --------
    Two tokens of one sequence, without users:

    >>> items, positions = torch.ones(3, 4), torch.zeros(2, 4)
    >>> offsets = torch.tensor([0, 2], dtype=torch.int32)
    >>> user_item_embedding(items, None, positions, torch.tensor([1, 2]), None, torch.tensor([0, 1]), offsets)
    tensor([[2., 2., 2., 2.],
            [2., 2., 2., 2.]])
    """
    tables = (item_weight, user_weight, position_weight)
    args = (*tables, items, users, positions, cu_seqlens, dropout_p, seed, site)
    device = item_weight.device
    return cast(call("user_item_embedding", device, backend, *args), autocast_type(device))


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).user_item_embedding_backward

    def fake(
        item_weight: Tensor,
        user_weight: Tensor | None,
        position_weight: Tensor,
        items: Tensor,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        return item_weight.new_empty(items.shape[0], position_weight.shape[1])

    def fake_backward(
        grad: Tensor,
        item_weight: Tensor,
        user_weight: Tensor | None,
        position_weight: Tensor,
        *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(grad.dtype, torch.float32)
        user_shape = (0, 0) if user_weight is None else user_weight.shape
        return (
            grad.new_empty(item_weight.shape, dtype=wide),
            grad.new_empty(user_shape, dtype=wide),
            grad.new_empty(position_weight.shape, dtype=wide),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.dropout_p, seed, ctx.site = inputs
        ctx.save_for_backward(*tensors, seed)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, seed = ctx.saved_tensors
        item_weight, user_weight, position_weight, items, *_ = tensors
        grad_item, grad_user, grad_position = backward_op(
            grad, *tensors, ctx.dropout_p, seed, ctx.site, fixed_order(items)
        )
        return (
            grad_item.to(item_weight.dtype),
            None if user_weight is None else grad_user.to(user_weight.dtype),
            grad_position.to(position_weight.dtype),
            *(None,) * 7,
        )

    register_op(
        namespace,
        "user_item_embedding",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
