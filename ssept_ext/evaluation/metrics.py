"""Ranking metrics."""

from __future__ import annotations

import torch
from torch import Tensor

CUTOFF = 10


def ranks_of_first(scores: Tensor) -> Tensor:
    """(B, C) scores -> (B,) how many other candidates score at least what candidate 0 does.

    Ties count against candidate 0, so constant scores rank it last. (recommenders' double argsort
    ranks it first then: HR = 1.)
    """
    return (scores[:, 1:] >= scores[:, :1]).sum(1)


def ndcg_and_hr(ranks: Tensor) -> tuple[float, float]:
    """(B,) ranks from 0 -> mean NDCG@10 and HR@10, with one relevant item per user."""
    hit = ranks < CUTOFF
    gain = hit / torch.log2(ranks.double() + 2)
    return gain.mean().item(), hit.double().mean().item()
