"""The best items of each row, merged block by block."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 64
"""Items that share one comparison with what is already found; blocks are multiples of it."""


class TopK:
    """The k best items of m rows among all blocks so far, best first; equal scores by rising item id."""

    def __init__(self, num_rows: int, k: int, like: Tensor) -> None:
        """Begin with nothing: items 0, scores -inf of the type and on the device of `like`."""
        self.scores = like.new_full((num_rows, k), -math.inf)
        self.items = torch.zeros(num_rows, k, dtype=torch.int64, device=like.device)
        self._finite = torch.ones((), dtype=torch.bool, device=like.device)

    def update(self, first: int, scores: Tensor) -> None:
        """Take a block of `score_blocks`, of items above those of all blocks before."""
        num_rows, width = scores.shape
        k = self.scores.shape[1]
        chunks = scores.view(num_rows, -1, _CHUNK)
        best = chunks.amax(2)
        self._finite &= (best < math.inf).all()  # False for NaN
        # Only what is above the k-th best so far can enter; an equal one has the larger id.
        bound = self.scores[:, -1:]
        if (
            not bound.isfinite().all()
        ):  # early: no more than the k best of this block, and their ties
            kth = scores.topk(min(k, width)).values[:, -1:]
            bound = bound.maximum(kth.nextafter(kth.new_tensor(-math.inf)))
        row, chunk = (best > bound).nonzero(as_tuple=True)
        values = chunks[row, chunk]
        hit, column = (values > bound[row]).nonzero(as_tuple=True)
        row, item = row[hit], first + chunk[hit] * _CHUNK + column
        if len(row):
            self._merge(row, item, values[hit, column])

    def _merge(self, row: Tensor, item: Tensor, score: Tensor) -> None:
        """Add entries that are sorted by row, then by item."""
        counts = row.bincount()
        rows = counts.nonzero()[:, 0]
        own = torch.searchsorted(rows, row)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        shape = (len(rows), int(counts.max()))
        scores, items = score.new_full(shape, -math.inf), item.new_zeros(shape)
        scores[own, place], items[own, place] = score, item
        # Stable: of equals the one with the lower id stays ahead.
        scores, order = torch.cat([self.scores[rows], scores], 1).sort(
            dim=1, descending=True, stable=True
        )
        items = torch.cat([self.items[rows], items], 1).gather(1, order)
        k = self.scores.shape[1]
        self.scores[rows], self.items[rows] = scores[:, :k], items[:, :k]

    def check_finite(self) -> None:
        """Refuse scores that were not finite: a NaN must never rank."""
        check_finite(self._finite)


def check_finite(finite: Tensor) -> None:
    """Raise the ValueError of a model that has diverged, unless `finite` is true."""
    if not finite.item():
        raise ValueError(
            "scores are not finite: the model's parameters hold NaN or infinite values"
        )
