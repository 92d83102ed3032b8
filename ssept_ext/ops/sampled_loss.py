"""The op `sampled_loss`: a training loss of the scores of each token's positive and sampled negatives."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call, register_op
from ssept_ext.ops._tables import fixed_order, in_types_of_tables, widened
from ssept_ext.ops.sampled_logits import fake_backward

SampledLossName = Literal["bce", "bpr", "sampled_softmax"]


def sampled_loss(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    positives: Tensor,
    negatives: Tensor,
    users: Tensor | None,
    cu_seqlens: Tensor,
    loss: SampledLossName = "bce",
    *,
    beta: float = 1.0,
    log_q: Tensor | None = None,
    corrects_positive: bool = True,
    backend: Backend | None = None,
) -> Tensor:
    """Score each token's positive and K negatives as `sampled_logits` does, and average a loss of the logits.

    With p the logit of the positive and n_k those of the negatives, the loss of a token is

    - "bce": `beta · softplus(-p) + Σ_k softplus(n_k)`, binary cross-entropy (Kang & McAuley 2018);
    - "bpr": the mean over k of `softplus(n_k - p)` (Rendle et al., UAI 2009);
    - "sampled_softmax": `log(exp p + Σ_k exp n_k) - p`.

    The average is over the tokens that have a target: whose positive is not 0, and which are no tail padding. The
    forward pass also computes the gradient with respect to the logits, all that the backward pass needs of them.

    Parameters
    ----------
    hidden, item_weight, user_weight, users, cu_seqlens
        As in `sampled_logits`.
    positives
        (N,) int64 in 0..I; 0 where a token has no target.
    negatives
        (N, K) int64 in 0..I; the logit of 0 is exactly 0.
    loss
        Which loss.
    beta
        Weight of the positive's term in "bce"; `ssept_ext.network.losses.gbce` says which makes it gBCE.
    log_q
        (I + 1,) log-probability of drawing each item as a negative, subtracted from the logits; it gets no gradient.
        None for uniform negatives.
    corrects_positive
        Whether `log_q` is subtracted from p too. If not, `log_q + log K` is subtracted from the n_k; see
        `ssept_ext.network.losses.sampled_softmax`.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    Tensor
        Scalar, float32 or wider; 0 if no token has a target.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device, or is unknown; names it.
    IndexError
        If an id is outside its table; names the id and the table's size. On CUDA the id counts as 0,
        and the next `ssept_ext.ops.raise_pending_errors` raises the error.

    Examples
    --------
    >>> items = torch.eye(3)  # rows 1 and 2 are the vectors of items 1 and 2
    >>> hidden, offsets = torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([0, 1], dtype=torch.int32)
    >>> sampled_loss(hidden, items, None, torch.tensor([1]), torch.tensor([[2]]), None, offsets)  # 2 log 2
    tensor(1.3863)
    """
    device = hidden.device
    hidden = widened(hidden, item_weight)
    if log_q is not None:
        log_q = log_q.to(torch.promote_types(hidden.dtype, torch.float32))
    tensors = (hidden, item_weight, user_weight, positives, negatives, users, cu_seqlens)
    out = call("sampled_loss", device, backend, *tensors, loss, beta, log_q, corrects_positive)
    # The kernels also return what the backward pass needs.
    return out if isinstance(out, Tensor) else out[0]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).sampled_loss_backward

    def fake(
        hidden: Tensor,
        item_weight: Tensor,
        user_weight: Tensor | None,
        positives: Tensor,
        negatives: Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss, inverse_count = (hidden.new_empty((), dtype=wide) for _ in range(2))
        scored = (negatives.shape[0], negatives.shape[1] + 1)
        return loss, hidden.new_empty(scored), inverse_count, negatives.new_empty(scored)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, item_weight, user_weight, _, _, users, cu_seqlens, *_ = inputs
        _, *for_backward = output
        ctx.mark_non_differentiable(*for_backward)
        ctx.set_materialize_grads(False)  # no zeros as their gradients
        ctx.save_for_backward(hidden, item_weight, user_weight, users, cu_seqlens, *for_backward)

    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 11
        hidden, *tables, users, cu_seqlens, grad_logits, inverse_count, items = ctx.saved_tensors
        where = (items, users, cu_seqlens, fixed_order(items))
        gradients = backward_op(grad_logits, hidden, *tables, *where, grad_loss, inverse_count)
        return *in_types_of_tables(gradients, *tables), *(None,) * 8

    register_op(
        namespace,
        "sampled_loss",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
