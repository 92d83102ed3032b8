"""The op `shared_loss`: a training loss of the scores of each token's positive and of negatives that tokens share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call, register_op
from ssept_ext.ops._tables import widened
from ssept_ext.ops.sampled_logits import fake_backward
from ssept_ext.ops.sampled_loss import SampledLossName


def shared_loss(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    positives: Tensor,
    negatives: Tensor,
    users: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    loss: SampledLossName = "bce",
    *,
    beta: float = 1.0,
    log_q: Tensor | None = None,
    corrects_positive: bool = True,
    backend: Backend | None = None,
) -> Tensor:
    """Compute what `sampled_loss` does, with K negatives that the tokens of a sequence share, or all tokens.

    Their scores are then products of matrices, so that many negatives cost little. A shared negative may be the
    positive of some token. It is left out of the loss of that token, as is a negative with the id 0: its logit counts
    as -∞. "bpr" still divides by K.

    Parameters
    ----------
    hidden, item_weight, user_weight, positives, users, cu_seqlens, loss, beta, log_q, corrects_positive, backend
        As in `sampled_loss`.
    negatives
        (B, K) int64 in 0..I, those of each sequence, or (1, K), those of all tokens.
    max_seqlen
        Length of the longest sequence, or an upper bound of it.

    Returns
    -------
    Tensor
        Scalar, float32 or wider; 0 if no token has a target.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device, or is unknown; names it.
    IndexError
        If an id is outside its table, as in `sampled_loss`.

    Examples
    --------
    >>> items = torch.eye(3)  # rows 1 and 2 are the vectors of items 1 and 2
    >>> hidden, offsets = torch.zeros(2, 3), torch.tensor([0, 2], dtype=torch.int32)
    >>> negatives = torch.tensor([[1, 2]])
    >>> shared_loss(hidden, items, None, torch.tensor([1, 0]), negatives, None, offsets, 2)  # of item 1 against 2
    tensor(1.3863)
    """
    device = hidden.device
    hidden = widened(hidden, item_weight)
    if log_q is not None:
        log_q = log_q.to(torch.promote_types(hidden.dtype, torch.float32))
    tensors = (hidden, item_weight, user_weight, positives, negatives, users, cu_seqlens)
    options = (loss, beta, log_q, corrects_positive)
    out = call("shared_loss", device, backend, *tensors, max_seqlen, *options)
    # The kernel also returns gradients, which it computes while the logits are in cache.
    return out if isinstance(out, Tensor) else out[0]


def register(namespace: str) -> None:
    """Register the fake implementation and the gradient of this op in a library namespace."""

    def fake(
        hidden: Tensor, item_weight: Tensor, user_weight: Tensor | None, *_: Any, **__: Any
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss, inverse_count = (hidden.new_empty((), dtype=wide) for _ in range(2))
        return loss, *fake_backward(loss, hidden, item_weight, user_weight), inverse_count

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *for_backward = output
        ctx.mark_non_differentiable(*for_backward)
        ctx.set_materialize_grads(False)  # no zeros as their gradients
        ctx.types = [None if x is None else x.dtype for x in inputs[:3]]
        ctx.save_for_backward(*for_backward)

    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 12
        *gradients, inverse_count = ctx.saved_tensors
        factor = grad_loss * inverse_count
        scaled = (
            None if dtype is None else (x.to(factor.dtype) * factor).to(dtype)
            for x, dtype in zip(gradients, ctx.types, strict=True)
        )
        return *scaled, *(None,) * 9

    register_op(
        namespace,
        "shared_loss",
        fake=fake,
        fake_backward=None,
        setup_context=setup_context,
        backward=backward,
    )
