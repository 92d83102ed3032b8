"""Rankings by scores that something else than a model of this package gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ssept_ext.data.histories import Histories
from ssept_ext.ops.ranking_reference import best_columns
from ssept_ext.ranking.catalogue import USERS_AT_A_TIME, Best

SCORES_AT_A_TIME = 1 << 22
"""Largest number of scores that are asked for together."""


@runtime_checkable
class ItemScorer(Protocol):
    """Anything that scores all items of a data set: what `evaluate_full` and `evaluate_ranks` take beside models.

    Users and items are numbered as in the data set that is evaluated.
    """

    def score_items(self, histories: Histories) -> Tensor:
        """Score all items for each of some users, given the events before the one to find.

        Returns
        -------
        Tensor
            (R, I + 1) finite numbers for the R rows of `histories` and the items 1..I, of which a higher one is better.
            Column 0 is not used.
        """


class GivenScores:
    """The items 1 to n, for queries that are the scores of an `ItemScorer`: a `Catalogue` without vectors."""

    def best(self, scores: Tensor, k: int, seen: Histories | None = None) -> Best:
        """As `Catalogue.best`, of (m, n + 1) finite scores."""
        scores = self._hidden(scores, seen)
        columns = best_columns(scores[:, 1:], k) + 1
        best = scores.gather(1, columns)
        return Best(torch.where(best == -math.inf, 0, columns), best)

    def ranks(self, scores: Tensor, targets: Tensor, seen: Histories | None = None) -> Tensor:
        """As `Catalogue.ranks`, of (m, n + 1) finite scores."""
        of_target = scores.gather(1, targets[:, None])
        others = self._hidden(scores, seen).scatter(1, targets[:, None], -math.inf)[:, 1:]
        return torch.stack([(others > of_target).sum(1), (others >= of_target).sum(1)], 1)

    @staticmethod
    def _hidden(scores: Tensor, seen: Histories | None) -> Tensor:
        if seen is None:
            return scores
        rows = np.repeat(np.arange(len(scores)), np.diff(seen.offsets))
        return scores.index_put(
            (torch.from_numpy(rows), torch.from_numpy(seen.items)), scores.new_tensor(-math.inf)
        )


def score_groups(
    scorer: ItemScorer, histories: Histories, num_items: int
) -> Iterator[tuple[slice, Tensor]]:
    """Score all rows of `histories`, in groups of bounded memory.

    Yields
    ------
    tuple
        The rows of a group, and their scores (m, num_items + 1).

    Raises
    ------
    ValueError
        If scores have another shape, or are not finite.
    """
    num_rows = len(histories.users)
    at_a_time = min(max(SCORES_AT_A_TIME // (num_items + 1), 1), USERS_AT_A_TIME)
    for start in range(0, num_rows, at_a_time):
        rows = slice(start, min(start + at_a_time, num_rows))
        scores = scorer.score_items(histories.part(rows))
        shape = (rows.stop - rows.start, num_items + 1)
        name = f"scores of {type(scorer).__name__}"
        if scores.shape != shape:
            raise ValueError(f"{name} must be of the shape {shape}, got {tuple(scores.shape)}")
        if not scores.isfinite().all():
            raise ValueError(f"{name} must be finite")
        yield rows, scores
