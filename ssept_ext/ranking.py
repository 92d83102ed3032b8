"""Scores of users for the whole catalogue, block by block, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssept_ext import ops
from ssept_ext.data import Histories, IntArray
from ssept_ext.packing import PackedBatch

if TYPE_CHECKING:
    from ssept_ext.model import SASREC

USERS_AT_A_TIME = 1024
SCORES_AT_A_TIME = 1 << 22
"""A block of scores is this large at most: 16 MiB in float32, whatever the number of items."""
_CHUNK = 64
"""Items that share one comparison with what is already found; blocks are multiples of it."""
_WIDTH = 192
"""Blocks are multiples of it: of the columns that matrix products take at a time, 8 to 64, or 12, 24 and 48."""


@contextmanager
def scoring(model: SASREC) -> Iterator[None]:
    """Evaluation mode without gradients; the model gets its mode back, and CUDA errors surface."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
    ops.raise_pending_errors()


def last_events(histories: Histories, rows: slice, seq_max_len: int) -> PackedBatch:
    """Pack the newest `seq_max_len` events of some of the users, on the CPU."""
    starts, ends = histories.offsets[:-1][rows], histories.offsets[1:][rows]
    lengths = np.minimum(ends - starts, seq_max_len)
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    token = np.arange(cu_seqlens[-1])
    event = token + np.repeat(ends - cu_seqlens[1:], lengths)
    return PackedBatch(
        users=torch.from_numpy(histories.users[rows]),
        items=torch.from_numpy(histories.items[event]),
        positions=torch.from_numpy(token + np.repeat(seq_max_len - cu_seqlens[1:], lengths)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
    )


def encode_groups(
    model: SASREC, histories: Histories, batch_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Encode all rows of `histories`: m <= `USERS_AT_A_TIME` rows at a time, their queries (m, Di) and
    user parts (m,), as `model.encode_newest` returns them. User 0 stands for an unknown one, who gets the
    mean of all users' vectors.
    """
    num_rows = len(histories.users)
    unknown = None if histories.users.all() else model.mean_user_vector()

    def encode(rows: slice) -> tuple[Tensor, Tensor]:
        batch = last_events(histories, rows, model.seq_max_len).to(model.device)
        if unknown is None or model.user_embedding_layer is None:
            return model.encode_newest(batch)
        vectors = model.user_embedding_layer(batch.users)
        return model.encode_newest(batch, vectors.where(batch.users[:, None] != 0, unknown))

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
    queries : (m, Di), m >= 1
    item_weight : (I + 1, Di), converted to the queries' type a block at a time
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
