"""Rankings by scores that something else than a model of this package gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ssept_ext.data.histories import Histories
from ssept_ext.ranking.catalogue import SCORES_AT_A_TIME, USERS_AT_A_TIME, Catalogue
from ssept_ext.ranking.top_k import CHUNK


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


class GivenScores(Catalogue):
    """The items 1 to `num_items`, for queries that are the scores of an `ItemScorer`."""

    def __init__(self, num_items: int) -> None:
        super().__init__(torch.empty(num_items + 1, 0))

    def blocks(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """As `score_blocks`: one block of all items."""
        num_rows, columns = queries.shape
        width = -(-(columns - 1) // CHUNK) * CHUNK
        scores = queries.new_full((num_rows, width), -math.inf)
        scores[:, : columns - 1] = queries[:, 1:]
        yield 1, scores


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
