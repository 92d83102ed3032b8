"""The op `sampled_logits`: scores of sampled items for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call, register_op
from ssept_ext.ops._tables import fixed_order, in_types_of_tables, widened


def sampled_logits(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    items: Tensor,
    users: Tensor | None,
    cu_seqlens: Tensor,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Score K items for each of N tokens without building an (N, K, D) tensor.

    `logits[n, k] = h[:Di] · item_weight[items[n, k]] + h[Di:] · user_weight[u] · sqrt(Du)`, where h is
    `hidden[n]` and u the user of n's sequence. This is the prediction layer of SSE-PT (Wu et al. 2020, section 3.1), as
    recommenders computes it: the user's vector is scaled, the item's is not. The logit is exactly 0 and has no gradient
    if `items[n, k]` is 0, and for tail padding, the tokens from `cu_seqlens[B]` on.

    Parameters
    ----------
    hidden
        (N, Di + Du) float16, bfloat16, float32 or float64.
    item_weight
        (I + 1, Di), same dtype, or a wider one under autocast; row 0 is never read.
    user_weight
        (U + 1, Du), same dtype as `item_weight`; row 0 is never read. None for SASRec (Du = 0).
    items
        (N, K) int64 in 0..I.
    users
        (B,) int64 in 0..U; None if `user_weight` is None.
    cu_seqlens
        (B + 1,) int32 offsets of the sequences.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    Tensor
        (N, K), same dtype as the tables; sums are accumulated in float32 or wider.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.
    IndexError
        If an id is outside its table; names the id and the table's size. On CUDA the id counts as 0,
        and the next `ssept_ext.ops.raise_pending_errors` raises the error.

    Examples
    --------
    >>> items = torch.eye(3)  # rows 1 and 2 are the vectors of items 1 and 2
    >>> hidden, offsets = torch.tensor([[0.5, 3.0, 4.0]]), torch.tensor([0, 1], dtype=torch.int32)
    >>> sampled_logits(hidden, items, None, torch.tensor([[2, 1, 0]]), None, offsets)
    tensor([[4., 3., 0.]])
    """
    device = hidden.device
    hidden = widened(hidden, item_weight)
    args = (hidden, item_weight, user_weight, items, users, cu_seqlens)
    return call("sampled_logits", device, backend, *args)  # type: ignore[no-any-return]


def fake_backward(
    grad_logits: Tensor,
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the shapes of the gradients, also of `sampled_loss`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    user_shape = (0, 0) if user_weight is None else user_weight.shape
    return (
        hidden.new_empty(hidden.shape),
        hidden.new_empty(item_weight.shape, dtype=wide),
        hidden.new_empty(user_shape, dtype=wide),
    )


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).sampled_logits_backward

    def fake(hidden: Tensor, _: Tensor, __: Tensor | None, items: Tensor, *___: Any) -> Tensor:
        return hidden.new_empty(items.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, item_weight, user_weight, items, users, cu_seqlens = ctx.saved_tensors
        gradients = backward_op(
            grad, hidden, item_weight, user_weight, items, users, cu_seqlens, fixed_order(items)
        )
        return *in_types_of_tables(gradients, item_weight, user_weight), *(None,) * 3

    register_op(
        namespace,
        "sampled_logits",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
