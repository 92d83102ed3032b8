"""Ranking metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

CUTOFF = 10

Ties = Literal["pessimistic", "optimistic", "mean"]
"""Where candidates with the score of the held-out item rank: above it, below it, or in all orders, averaged."""

BEATS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], ...]] = {
    "pessimistic": (torch.ge,),
    "optimistic": (torch.gt,),
    "mean": (torch.gt, torch.ge),
}
"""How scores are compared with that of the held-out item, to count those above it: for its best and worst rank."""


def count_above(scores: Tensor, of_target: Tensor, ties: Ties) -> Tensor:
    """Count the scores (B, C) that rank above that of the target (B, 1): (B, 1) or, for "mean", (B, 2) counts.

    Examples
    --------
    >>> count_above(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.5]]), "mean")
    tensor([[1, 2]])
    """
    return torch.stack([beats(scores, of_target).sum(1) for beats in BEATS[ties]], 1)


def gain_of_each(ranks: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a metric for each user, averaged over all orders of the ties.

    Parameters
    ----------
    ranks
        (B, 1) ranks from 0, or (B, 2) best and worst ranks, which stand for all in between.
    gain
        The metric of float64 ranks.

    Returns
    -------
    Tensor
        (B,) float64.
    """
    if ranks.shape[1] == 1:
        return gain(ranks[:, 0].double())
    best, worst = ranks.unbind(1)
    every_rank = torch.arange(int(worst.max()) + 1, device=ranks.device)
    up_to = F.pad(gain(every_rank.double()).cumsum(0), (1, 0))
    return (up_to[worst + 1] - up_to[best]) / (worst + 1 - best)


def mean_gain(ranks: Tensor, gain: Callable[[Tensor], Tensor]) -> float:
    """Average what `gain_of_each` returns over the users."""
    return gain_of_each(ranks, gain).mean().item()


def ndcg(rank: Tensor, k: int = CUTOFF) -> Tensor:
    """NDCG@k of ranks from 0, with one relevant item."""
    return (rank < k) / torch.log2(rank + 2)


def hr(rank: Tensor, k: int = CUTOFF) -> Tensor:
    """Hit rate at k of ranks from 0."""
    return (rank < k).double()


def reciprocal(rank: Tensor, k: int | None = None) -> Tensor:
    """Reciprocals of ranks from 0, which are counted from 1 for this; 0 from rank k on, if k is given."""
    return 1 / (rank + 1) if k is None else (rank < k) / (rank + 1)


def ndcg_and_hr(ranks: Tensor) -> tuple[float, float]:
    """Return the mean NDCG@10 and HR@10 of ranks as `count_above` gives them.

    Examples
    --------
    >>> ndcg_and_hr(torch.tensor([[0], [10]]))
    (0.5, 0.5)
    >>> ndcg_and_hr(torch.tensor([[0, 19]]))[1]  # half of the orders
    0.5
    """
    return mean_gain(ranks, ndcg), mean_gain(ranks, hr)
