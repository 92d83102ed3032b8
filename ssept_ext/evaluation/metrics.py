"""Ranking metrics."""

from __future__ import annotations

import torch
from torch import Tensor

CUTOFF = 10


def ranks_of_first(scores: Tensor) -> Tensor:
    """Return the rank (B,) of candidate 0, from 0, by scores (B, C): how many others score at least as much.

    Ties count against candidate 0, so with constant scores it is last. (recommenders' double argsort makes it
    first then, and HR 1.)

    Examples
    --------
    >>> ranks_of_first(torch.tensor([[0.5, 0.9, 0.1], [0.5, 0.5, 0.5]]))
    tensor([1, 2])
    """
    return (scores[:, 1:] >= scores[:, :1]).sum(1)


def ndcg_and_hr(ranks: Tensor) -> tuple[float, float]:
    """Return the mean NDCG@10 and HR@10 of (B,) ranks from 0, with one relevant item per user.

    Examples
    --------
    >>> ndcg_and_hr(torch.tensor([0, 10]))
    (0.5, 0.5)
    """
    hit = ranks < CUTOFF
    gain = hit / torch.log2(ranks.double() + 2)
    return gain.mean().item(), hit.double().mean().item()
