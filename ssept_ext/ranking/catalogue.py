"""Scores of users for the whole catalogue, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ssept_ext import ops
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.packed import last_events
from ssept_ext.network.recommender import SequentialRecommender

USERS_AT_A_TIME = 1024


SCORES_AT_A_TIME = 1 << 22
"""A block of scores is this large at most: 16 MiB in float32, whatever the number of items."""


_WIDTH = 192
"""Blocks are multiples of it: of the columns that matrix products take at a time, 8 to 64, or 12, 24 and 48."""


@contextmanager
def scoring(model: SequentialRecommender) -> Iterator[None]:
    """Evaluation mode without gradients; the model gets its mode back, and CUDA errors surface."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
    ops.raise_pending_errors()


def encode_groups(
    model: SequentialRecommender, histories: Histories, batch_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Encode all rows of `histories`: m <= `USERS_AT_A_TIME` rows at a time, their queries (m, Di) and
    user parts (m,), as `model.encode_last` returns them. User 0 stands for an unknown one, who gets the
    mean of all users' vectors.
    """
    num_rows = len(histories.users)
    unknown = None if histories.users.all() else model.mean_user_vector()

    def encode(rows: slice) -> tuple[Tensor, Tensor]:
        batch = last_events(histories, rows, model.seq_max_len).to(model.device)
        if unknown is None or model.user_embedding_layer is None:
            return model.encode_last(batch)
        vectors = model.user_embedding_layer(batch.users)
        return model.encode_last(batch, vectors.where(batch.users[:, None] != 0, unknown))

    for start in range(0, num_rows, USERS_AT_A_TIME):
        end = min(start + USERS_AT_A_TIME, num_rows)
        parts = [
            encode(slice(first, min(first + batch_size, end)))
            for first in range(start, end, batch_size)
        ]
        queries, user_parts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        yield slice(start, end), queries, user_parts


def score_blocks(queries: Tensor, item_weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Score all items but item 0: pairs of a block's first item and its scores (m, width).

    Column j belongs to item `first + j`; columns beyond the last item are -inf. The memory of the
    scores is reused from block to block. All blocks have one width, a multiple of 192, and with it
    one order of summation: items of equal vectors get equal scores, wherever they are.

    Parameters
    ----------
    queries
        (m, Di), m >= 1.
    item_weight
        (I + 1, Di), converted to the queries' type a block at a time.
    """
    num_items = item_weight.shape[0] - 1
    width = min(SCORES_AT_A_TIME // len(queries), num_items + _WIDTH - 1)
    width = max(width // _WIDTH, 1) * _WIDTH
    scores = queries.new_empty(len(queries), width)
    for first in range(1, num_items + 1, width):
        vectors = item_weight[first : first + width].to(queries.dtype)
        count = len(vectors)
        if count < width:
            vectors = torch.cat([vectors, vectors.new_zeros(width - count, vectors.shape[1])])
        torch.mm(queries, vectors.T, out=scores)
        scores[:, count:] = -math.inf
        yield first, scores


class SeenItems:
    """Hides what users have seen, without a mask of users by items."""

    def __init__(self, histories: Histories, rows: slice, device: torch.device) -> None:
        """Take the histories of some of the rows."""
        _, offsets, items = histories.part(rows)
        order = items.argsort(kind="stable")
        self._items: IntArray = items[order]
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[order]
        self._row_and_item = torch.from_numpy(np.stack([row, self._items])).to(device)

    def hide(self, first: int, scores: Tensor) -> None:
        """Set the scores of seen items to -inf in a block of `score_blocks`."""
        start, end = np.searchsorted(self._items, [first, first + scores.shape[1]]).tolist()
        row, item = self._row_and_item[:, start:end]
        scores[row, item - first] = -math.inf
