"""Training losses, on sampled logits or on the logits of the whole catalogue."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext import ops
from ssept_ext._extension import Backend, use_native

LossName = Literal["bce", "gbce", "bpr", "sampled_softmax", "softmax"]
LogQCorrection = Literal["all", "negatives"]
"""Which logits `sampled_softmax` corrects."""

# Where `softmax` has no kernel, it computes the logits in tiles of this many tokens and items: 16 MiB in float32.
TILE = (2048, 2048)

MOST_SHARED_ITEMS = 16384
"""Up to so many items, `softmax` on a CPU is a loss against all of them as shared negatives, whose gradient takes
memory for 16 tables, or for as many rows as there are tokens."""


def bce(logits: Tensor, positives: Tensor) -> Tensor:
    """Binary cross-entropy of the positive against the sampled negatives (Kang & McAuley 2018, equation 6).

    `-log sigmoid(positive) - Σ_k log(1 - sigmoid(negative_k))`, averaged over the tokens that have a target.

    Parameters
    ----------
    logits
        (N, 1 + K) floating-point logits, the positive's in column 0.
    positives
        (N,) int64, 0 where a token has no target.

    Returns
    -------
    Tensor
        Scalar, float32 or wider; 0 if no token has a target.

    Examples
    --------
    >>> bce(torch.tensor([[0.0, 0.0]]), positives=torch.tensor([7]))  # 2 log 2
    tensor(1.3863)
    """
    wide = _wide(logits)
    return _mean(F.softplus(-wide[:, 0]) + F.softplus(wide[:, 1:]).sum(1), positives)


def gbce(logits: Tensor, positives: Tensor, item_num: int, t: float) -> Tensor:
    """Generalised binary cross-entropy (gSASRec: Petrov & Macdonald, RecSys 2023).

    This is `bce` with the positive's term multiplied by `β = α(t(1 - 1/α) + 1/α)`, where `α = K / (item_num - 1)` is
    the sampling rate of negatives. It corrects the overconfidence that comes from sampling few negatives: t = 0 is
    `bce`, t = 1 calibrates fully. The paper also divides by K + 1; Adam is invariant to such a constant factor.

    Parameters
    ----------
    logits, positives
        As for `bce`.
    item_num
        Size of the catalogue.
    t
        Degree of calibration, in [0, 1].
    """
    beta = gbce_beta(logits.shape[1] - 1, item_num, t)
    wide = _wide(logits)
    return _mean(beta * F.softplus(-wide[:, 0]) + F.softplus(wide[:, 1:]).sum(1), positives)


def gbce_beta(num_negatives: int, item_num: int, t: float) -> float:
    """Compute the weight of the positive's term in `gbce`."""
    alpha = num_negatives / (item_num - 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def bpr(logits: Tensor, positives: Tensor) -> Tensor:
    """Bayesian personalised ranking: `-log sigmoid(positive - negative)` (Rendle et al., UAI 2009).

    Averaged over the negatives and over the tokens that have a target. Takes the arguments of `bce`.
    """
    wide = _wide(logits)
    return _mean(F.softplus(wide[:, 1:] - wide[:, :1]).mean(1), positives)


def sampled_softmax(
    logits: Tensor,
    positives: Tensor,
    log_q: Tensor | None = None,
    logq_correction: LogQCorrection = "all",
) -> Tensor:
    """Cross-entropy of the softmax over the positive and its negatives.

    Averaged over the tokens that have a target.

    Parameters
    ----------
    logits, positives
        As for `bce`.
    log_q
        (N, 1 + K) log-probability of drawing each item as a negative. It is subtracted from the logits (Bengio &
        Senécal 2008; Yi et al., RecSys 2019), so that popular items are not penalised for being drawn more often.
        None for uniform negatives, for which the correction of all logits cancels.
    logq_correction
        "all", or "negatives": the positive is always there, not drawn, so its logit needs no correction, and
        `log q + log K` is subtracted from the K negatives' alone. Their sum then estimates that over all other items,
        and the gradient is that of Khrylchenko et al., RecSys 2025 (arXiv 2507.09331).

    Examples
    --------
    >>> log_q = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> sampled_softmax(torch.zeros(1, 3), torch.tensor([7]), log_q, "negatives").exp()  # 1 + (4 + 4) / 2
    tensor(5.)
    """
    wide = _wide(logits)
    if log_q is not None and logq_correction == "all":
        wide = wide - log_q
    elif log_q is not None:
        num_drawn = log_q[:, 1:] + math.log(log_q.shape[1] - 1)  # log of the expected number
        wide = torch.cat([wide[:, :1], wide[:, 1:] - num_drawn], 1)
    return _mean(wide.logsumexp(1) - wide[:, 0], positives)


def softmax(
    hidden: Tensor, item_weight: Tensor, positives: Tensor, backend: Backend = "auto"
) -> Tensor:
    """Cross-entropy of the softmax over the whole catalogue, averaged over the tokens that have a target.

    Only one tile of the (N, I) logits is in memory at a time. On a CPU, in float32 or float64 and up to
    `MOST_SHARED_ITEMS` items, `ssept_ext.ops.shared_loss` computes loss and gradient together; else the backward pass
    recomputes each tile. Under autocast, matrix products use autocast's dtype and sums are float32.

    Parameters
    ----------
    hidden
        (N, Di) floating point: the item part of the hidden states.
    item_weight
        (I + 1, Di), same dtype; row 0 is padding and ignored.
    positives
        (N,) int64 in 0..I, 0 where a token has no target.
    backend
        Whether to use the kernel of `shared_loss`.

    Returns
    -------
    Tensor
        Scalar, float32 or wider; 0 if no token has a target.
    """
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden, item_weight = hidden.to(dtype), item_weight.to(dtype)
    num_items = item_weight.shape[0] - 1
    is_small = device_type == "cpu" and num_items <= MOST_SHARED_ITEMS
    is_wide = hidden.dtype in (torch.float32, torch.float64)
    if is_small and is_wide and use_native("shared_loss", hidden.device, backend):
        # A positive is no negative of its own.
        everything = torch.arange(1, num_items + 1, device=hidden.device)[None]
        whole = torch.tensor([0, hidden.shape[0]], dtype=torch.int32, device=hidden.device)
        scored = (hidden, item_weight, None, positives, everything, None)
        batch = (whole, hidden.shape[0])
        return ops.shared_loss(*scored, *batch, "sampled_softmax", backend=backend)
    loss: Tensor = _TiledSoftmax.apply(hidden, item_weight, positives)  # type: ignore[no-untyped-call]
    return _mean(loss, positives)


class _TiledSoftmax(torch.autograd.Function):
    """(N, Di), (I + 1, Di), (N,) -> (N,) cross-entropies, undefined where the target is 0."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, item_weight: Tensor, positives: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        lse = torch.full(hidden.shape[:1], -torch.inf, dtype=wide, device=hidden.device)
        for x, lse_rows in zip(*(torch.split(x, TILE[0]) for x in (hidden, lse)), strict=True):
            for items in torch.split(item_weight[1:], TILE[1]):
                tile = (x @ items.T).to(wide)
                torch.logaddexp(lse_rows, tile.logsumexp(1), out=lse_rows)
        ctx.save_for_backward(hidden, item_weight, positives, lse)
        target = (hidden.to(wide) * F.embedding(positives, item_weight).to(wide)).sum(1)
        return lse - target

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, item_weight, positives, lse = ctx.saved_tensors
        grad = grads[0]
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        grad_weight = torch.zeros_like(item_weight, dtype=lse.dtype)
        rows = [torch.split(x, TILE[0]) for x in (hidden, lse, grad, positives, grad_hidden)]
        for x, lse_rows, grad_rows, targets, grad_x in zip(*rows, strict=True):
            for first in range(1, len(item_weight), TILE[1]):
                items = item_weight[first : first + TILE[1]]
                tile = ((x @ items.T).to(lse.dtype) - lse_rows[:, None]).exp_()
                inside = (targets >= first) & (targets < first + len(items))
                column = torch.where(inside, targets - first, 0)[:, None]
                tile.scatter_add_(1, column, -inside[:, None].to(tile.dtype))
                tile = (tile * grad_rows[:, None]).to(x.dtype)
                grad_x += tile @ items
                grad_weight[first : first + len(items)] += tile.T @ x
        return grad_hidden.to(hidden.dtype), grad_weight.to(item_weight.dtype), None


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mean(loss: Tensor, positives: Tensor) -> Tensor:
    """Average over the tokens that have a target."""
    has_target = positives != 0
    return torch.where(has_target, loss, 0).sum() / has_target.sum().clamp(min=1)
