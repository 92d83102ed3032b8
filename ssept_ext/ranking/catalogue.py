"""Scores of the whole catalogue for many users, in blocks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ssept_ext import distributed, ops
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.packed import last_events
from ssept_ext.network.padded import is_ours
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import Rows, Sharded
from ssept_ext.ranking.top_k import TopK

USERS_AT_A_TIME = 1024
"""Number of users that are scored together."""


SCORES_AT_A_TIME = 1 << 22
"""Largest number of scores in a block: 16 MiB in float32, whatever the number of items."""


ITEMS_AT_A_TIME = 1 << 16
"""Largest number of items in a block, of which the last is copied to be padded."""


_WIDTH = 192
"""The width of a block is a multiple of this: a common multiple of the tile widths of matrix products, 8 to 64 and
12, 24 and 48."""


_WITHOUT_MODE = (nn.Embedding, nn.Linear, nn.ModuleList, nn.Dropout)
"""The layers of torch in our models. `nn.Dropout` only holds the probability, and is not called."""


@contextmanager
def scoring(model: SequentialRecommender) -> Iterator[None]:
    """Compute without gradients; on exit, raise pending CUDA errors.

    A model with code of a user's own is in evaluation mode meanwhile. The mode of ours stays as it is, because another
    thread may be training them: their scores never have dropout.
    """
    was_training = model.training
    switches = not all(is_ours(x) or type(x) in _WITHOUT_MODE for x in model.modules())
    if switches:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if switches:
            model.train(was_training)
    ops.raise_pending_errors()


def encode_groups(
    model: SequentialRecommender,
    histories: Histories,
    batch_size: int,
    at: IntArray | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Encode all rows of `histories`, in groups of up to `USERS_AT_A_TIME`.

    User 0 is unknown and gets the mean of all users' vectors.

    Parameters
    ----------
    batch_size
        Users per forward pass.
    at
        (R,) time at which the next item is asked for, for a model with `time_bias`.

    Yields
    ------
    tuple
        The rows of a group, and their queries (m, Di) and user parts (m,), as `model.encode_last` returns them.
    """
    num_rows = len(histories.users)
    mean = None if histories.users.all() else model.mean_user()

    def encode(rows: slice) -> tuple[Tensor, Tensor]:
        batch = last_events(histories, rows, model.seq_max_len, at)
        vectors = model.user_vectors(batch.users, mean)
        return model.encode_last(batch.to(model.device), vectors)

    for start in range(0, num_rows, USERS_AT_A_TIME):
        end = min(start + USERS_AT_A_TIME, num_rows)
        parts = [
            encode(slice(first, min(first + batch_size, end)))
            for first in range(start, end, batch_size)
        ]
        queries, user_parts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        yield slice(start, end), queries, user_parts


def score_blocks(queries: Tensor, item_weight: Rows) -> Iterator[tuple[int, Tensor]]:
    """Score all items except item 0, in blocks of consecutive items.

    All blocks have the same width and reuse the same memory. The width is a multiple of 192, so that every matrix
    product sums in the same order: items with equal vectors get equal scores, whatever their ids.

    Parameters
    ----------
    queries
        (m, Di) with m >= 1.
    item_weight
        (I + 1, Di), converted to the dtype of the queries block by block.

    Yields
    ------
    tuple
        The first item of a block, and the block's scores (m, width). Column j is item `first + j`; columns
        beyond the last item are -inf. The scores are valid until the next block, and may be modified.
    """
    num_items = item_weight.shape[0] - 1
    width = min(SCORES_AT_A_TIME // len(queries), ITEMS_AT_A_TIME, num_items + _WIDTH - 1)
    width = max(width // _WIDTH, 1) * _WIDTH
    scores = queries.new_empty(len(queries), width)
    for first in range(1, num_items + 1, width):
        # With the row before, so that the vectors of all blocks have the same address modulo a cache line, on which the
        # order of a sum may depend.
        vectors = item_weight[first - 1 : first + width].to(queries.dtype)
        count = len(vectors) - 1
        if count < width:
            vectors = torch.cat([vectors, vectors.new_zeros(width - count, vectors.shape[1])])
        torch.mm(queries, vectors[1:].T, out=scores)
        scores[:, count:] = -math.inf
        yield first, scores


class Catalogue:
    """The items that users are ranked against. Of a sharded model, each process scores those that it has."""

    def __init__(self, vectors: Rows, before: int = 0, is_part: bool = False) -> None:
        """Have vectors (n + 1, Di), after a row that is not used, that come after those of `before` other items."""
        self._vectors, self._before, self._is_part = vectors, before, is_part

    @classmethod
    def of(cls, model: SequentialRecommender, num_items: int) -> Catalogue:
        """Have the model's vectors of the items 1 to `num_items`."""
        if isinstance(model, Sharded):
            before, vectors = model.item_part(num_items)
            return cls(vectors, before, is_part=True)
        return cls(model.scores.vectors(model.item_table()[: num_items + 1]))

    def blocks(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """As `score_blocks`, for the items of this process."""
        for first, scores in score_blocks(queries, self._vectors):
            yield self._before + first, scores

    def find(self, items: Tensor, first: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of some items, and in which columns, are in a block, not counting columns beyond the last."""
        end = min(first + scores.shape[1], self._before + self._vectors.shape[0])
        row = ((items >= first) & (items < end)).nonzero()[:, 0]
        return row, items[row] - first

    def total(self, values: Tensor) -> Tensor:
        """Add up what the processes have found in their blocks."""
        return distributed.total(values) if self._is_part else values

    def complete(self, top: TopK) -> None:
        """Make what the blocks of this process have updated the best of all; a ValueError if a score is not finite."""
        if self._is_part:
            top.gather()
        top.check_finite()


class SeenItems:
    """Sets the scores of seen items to -inf, without a mask of all users and items."""

    def __init__(self, histories: Histories, rows: slice, device: torch.device) -> None:
        """Prepare to hide the items in these rows of `histories`."""
        _, offsets, items, _ = histories.part(rows)
        order = items.argsort(kind="stable")
        self._items: IntArray = items[order]
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[order]
        self._row_and_item = torch.from_numpy(np.stack([row, self._items])).to(device)

    def hide(self, first: int, scores: Tensor) -> None:
        """Set the scores of seen items to -inf in a block of `score_blocks`."""
        start, end = np.searchsorted(self._items, [first, first + scores.shape[1]]).tolist()
        row, item = self._row_and_item[:, start:end]
        scores[row, item - first] = -math.inf
