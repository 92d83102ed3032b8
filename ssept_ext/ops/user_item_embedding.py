"""The op `user_item_embedding`: the input of the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssept_ext._extension import Backend, use_native
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


def user_item_embedding_and_tables(
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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Embed N tokens as `user_item_embedding` does, and return the tables of items and users again.

    What reads these later, such as a loss, has its gradients of both tables added to the embedding's in the kernel that
    computes those. If it read the tables themselves, autograd would add them, in a pass over each table.

    Parameters
    ----------
    item_weight, user_weight, position_weight, items, users, positions, cu_seqlens, dropout_p, seed, site, backend
        As in `user_item_embedding`.

    Returns
    -------
    x
        What `user_item_embedding` returns.
    item_weight, user_weight
        The same values as those given, in the same memory; None without users.

    Raises
    ------
    ValueError, IndexError
        As `user_item_embedding`.

    Examples
    --------
    >>> table, positions = torch.ones(3, 4, requires_grad=True), torch.zeros(2, 4)
    >>> offsets = torch.tensor([0, 2], dtype=torch.int32)
    >>> given = (table, None, positions, torch.tensor([1, 2]), None, torch.tensor([0, 1]), offsets)
    >>> x, same, _ = user_item_embedding_and_tables(*given)
    >>> (x.sum() + same[2].sum()).backward()
    >>> table.grad[:, 0]
    tensor([0., 2., 3.])
    """
    device = item_weight.device
    is_native = use_native("user_item_embedding", device, backend)
    # torch.compile fuses autograd's sums, and `call` refuses what a kernel cannot do.
    is_transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    tables = (item_weight, user_weight, position_weight)
    args = (*tables, items, users, positions, cu_seqlens, dropout_p, seed, site)
    if not is_native or torch.compiler.is_compiling() or is_transformed:
        return user_item_embedding(*args, backend=backend), item_weight, user_weight
    x, item_weight, user_weight = _EmbeddingAndTables.apply(*args)  # type: ignore[no-untyped-call]
    return cast(x, autocast_type(device)), item_weight, user_weight


class _EmbeddingAndTables(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        *tensors, ctx.dropout_p, seed, ctx.site = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, seed)
        items, users = tensors[:2]
        x = torch.ops.ssept_ext.user_item_embedding(*args)
        return x, items.view_as(items), None if users is None else users.view_as(users)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, more_item, more_user = grads
        if grad is None:
            return more_item, more_user, *(None,) * 8
        *tensors, seed = ctx.saved_tensors
        settings = (ctx.dropout_p, seed, ctx.site, fixed_order(tensors[3]))
        backward_op = torch.ops.ssept_ext.user_item_embedding_backward
        gradients = backward_op(grad, *tensors, *settings, more_item, more_user)
        return *_in_types_of(tensors, gradients), *(None,) * 7


def _in_types_of(tables: Sequence[Tensor | None], gradients: Iterable[Tensor]) -> list[Any]:
    pairs = zip(tables, gradients, strict=False)
    return [None if table is None else grad.to(table.dtype) for table, grad in pairs]


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
        settings = (ctx.dropout_p, seed, ctx.site, fixed_order(tensors[3]))
        return *_in_types_of(tensors, backward_op(grad, *tensors, *settings)), *(None,) * 7

    register_op(
        namespace,
        "user_item_embedding",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
