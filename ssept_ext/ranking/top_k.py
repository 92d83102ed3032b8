"""The k best items of each row, kept up to date block by block."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssept_ext import distributed

CHUNK = 64
"""Items that are first compared by their maximum. The width of a block must be a multiple of this."""


class TopK:
    """The k best items of each of m rows in all blocks so far, best first; ties are ordered by ascending item id.

    Examples
    --------
    >>> scores = torch.arange(64.0)[None]
    >>> top = TopK(num_rows=1, k=2, like=scores)
    >>> top.update(1, scores)  # items 1 to 64
    >>> top.items, top.scores
    (tensor([[64, 63]]), tensor([[63., 62.]]))
    """

    def __init__(self, num_rows: int, k: int, like: Tensor) -> None:
        """Start empty: items 0 and scores -inf, with the dtype and device of `like`."""
        self.scores = like.new_full((num_rows, k), -math.inf)
        self.items = torch.zeros(num_rows, k, dtype=torch.int64, device=like.device)
        self._finite = torch.ones((), dtype=torch.bool, device=like.device)

    def update(self, first: int, scores: Tensor) -> None:
        """Add a block of `score_blocks`, whose items must come after those of all earlier blocks."""
        num_rows, width = scores.shape
        k = self.scores.shape[1]
        chunks = scores.view(num_rows, -1, CHUNK)
        best = chunks.amax(2)
        self._finite &= (best < math.inf).all()  # False for NaN
        # Only scores above the k-th best so far can enter: with an equal score, the larger id loses.
        bound = self.scores[:, -1:]
        if not bound.isfinite().all():  # fewer than k items so far
            # Only the k best of this block, and their ties, can enter.
            kth = scores.topk(min(k, width)).values[:, -1:]
            bound = bound.maximum(kth.nextafter(kth.new_tensor(-math.inf)))
        row, chunk = (best > bound).nonzero(as_tuple=True)
        values = chunks[row, chunk]
        hit, column = (values > bound[row]).nonzero(as_tuple=True)
        row, item = row[hit], first + chunk[hit] * CHUNK + column
        if len(row):
            self._merge(row, item, values[hit, column])

    def _merge(self, row: Tensor, item: Tensor, score: Tensor) -> None:
        """Merge entries that are sorted by row, then by item."""
        counts = row.bincount()
        rows = counts.nonzero()[:, 0]
        own = torch.searchsorted(rows, row)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        shape = (len(rows), int(counts.max()))
        scores, items = score.new_full(shape, -math.inf), item.new_zeros(shape)
        scores[own, place], items[own, place] = score, item
        # A stable sort keeps the lower id first among equal scores.
        scores, order = torch.cat([self.scores[rows], scores], 1).sort(
            dim=1, descending=True, stable=True
        )
        items = torch.cat([self.items[rows], items], 1).gather(1, order)
        k = self.scores.shape[1]
        self.scores[rows], self.items[rows] = scores[:, :k], items[:, :k]

    def gather(self) -> None:
        """Take the best of all processes, where each has ranked items after those of the process before it."""
        everywhere = distributed.gather((self.scores.cpu(), self.items.cpu(), self._finite.cpu()))
        scores, items, finite = (list(parts) for parts in zip(*everywhere, strict=True))
        best, order = torch.cat(scores, 1).sort(dim=1, descending=True, stable=True)
        k = self.scores.shape[1]
        self.scores.copy_(best[:, :k])
        self.items.copy_(torch.cat(items, 1).gather(1, order[:, :k]))
        self._finite = torch.stack(finite).all()

    def check_finite(self) -> None:
        """Raise a ValueError if any score was NaN or infinite."""
        check_finite(self._finite)


def check_finite(finite: Tensor) -> None:
    """Raise a ValueError that says that the model has diverged, unless `finite` is true."""
    if not finite.item():
        raise ValueError(
            "scores are not finite: the model's parameters hold NaN or infinite values"
        )
