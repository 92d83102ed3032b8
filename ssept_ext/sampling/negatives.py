"""Negative sampling: items that a user has not seen, for training and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import MAX_ID, Histories, IntArray, to_offsets
from ssept_ext.utils.philox import Key, philox

_EVENTS_AT_A_TIME = 1 << 18


@dataclass(frozen=True)
class NegativeTable:
    """The items from 1 to item_num that are not in each of R histories, ready to be drawn by weight.

    A draw is one binary search: no item is tried and rejected. The memory is that of the
    histories, whatever the number of items.

    For example, 4 items weigh 2, 1, 3 and 1, and a user has seen items 1 and 3. Laid end to end,
    the items cover these intervals::

        item                      1        2        3        4
        weight                    2        1        3        1
        interval               0 to 2   2 to 3   3 to 6   6 to 7
        weight_through            2        3        6        7
        of the seen items:
        unseen_below              0                 1
        seen_through              2                 5

    Items 2 and 4 are left, so `unseen_weight` is 2, and a random point is 0 or 1. At point 0, only
    item 1 has `unseen_below` <= 0. Adding its `seen_through` puts back the weight that was left out before
    the point: 0 + 2 = 2, which is in the interval of item 2. At point 1, both seen items have
    `unseen_below` <= 1; the last one's `seen_through` leads to 1 + 5 = 6, which is in the interval of item 4.

    If every item weighs 1, `seen_through` would be 1, 2, 3, … in each row, so it is left out.

    Examples
    --------
    >>> seen = Histories.from_mapping({7: [3, 1]})
    >>> table = negative_table(seen, item_num=4, weights=np.array([0, 2, 1, 3, 1], np.int32))
    >>> table.unseen_below.tolist(), table.seen_through.tolist(), table.unseen_weight.tolist()
    ([0, 1], [2, 5], [2])
    >>> table.at(np.array([0]), np.array([0.0, 0.5]))
    array([2, 4])
    """

    seen_starts: IntArray
    """(R + 1,) where the S distinct items of each row start."""
    unseen_below: NDArray[np.int32]
    """(S,) for each distinct item of each row, ascending: the weight of the unseen items below it."""
    seen_through: NDArray[np.int32] | None
    """(S,) the weight of the row's seen items up to and including this one; None if every item weighs 1."""
    unseen_weight: IntArray
    """(R,) weight of all items that are not in the history."""
    weight_through: NDArray[np.int32] | None
    """(item_num + 1,) weight of items 0 to i; None if every item weighs 1."""
    item_num: int

    def native(self) -> Any:
        """Return the table for the compiled extension, or None if it did not load."""
        if _extension.native is None:
            return None
        return _extension.native.UnseenItems(
            **{f.name: getattr(self, f.name) for f in fields(self)}
        )

    def draw(self, key: Key, count: int) -> IntArray:
        """Draw items that each row has not seen, with replacement and by weight.

        The result depends on the arguments alone: row after row, `at` maps the doubles in [0, 1) of
        NumPy's Philox generator with this key.

        Parameters
        ----------
        key
            Key of the generator, see `ssept_ext.utils.philox`.
        count
            Number of items for each row.

        Returns
        -------
        IntArray
            (R, count)

        Raises
        ------
        ValueError
            If a row has seen everything.
        """
        if not self.unseen_weight.all():
            raise ValueError(
                f"no negative can be drawn for {np.count_nonzero(self.unseen_weight == 0)} of "
                f"{len(self.unseen_weight)} users, who have seen all items that negatives are drawn from"
            )
        if (native := self.native()) is not None:
            drawn: IntArray = native.draw(key, count)
            return drawn
        num_rows = len(self.unseen_weight)
        rng = np.random.Generator(philox(key))
        return self.at(np.arange(num_rows)[:, None], rng.random((num_rows, count)))

    def at(self, row: IntArray, uniform: NDArray[np.float64]) -> IntArray:
        """Map numbers in [0, 1) to unseen items, as `draw_unseen` in `csrc/sampler` does.

        Parameters
        ----------
        row
            Rows to draw for.
        uniform
            The numbers.

        Returns
        -------
        IntArray
            Items, of the shape to which `row` and `uniform` broadcast.
        """
        point = (uniform * self.unseen_weight[row]).astype(np.int64)
        num_below = np.searchsorted(self._gaps, row * self._stride + point, side="right")
        num_below -= self.seen_starts[row]
        if self.seen_through is None or self.weight_through is None:
            unweighted: IntArray = 1 + point + num_below
            return unweighted
        if len(self.seen_through):
            last_below = np.maximum(self.seen_starts[row] + num_below - 1, 0)
            point += np.where(num_below > 0, self.seen_through[last_below], 0)
        return np.searchsorted(self.weight_through, point, side="right")

    @cached_property
    def _gaps(self) -> IntArray:
        """(S,) `unseen_below` of all rows, each moved by its row, so that one binary search serves all."""
        owner = np.repeat(np.arange(len(self.unseen_weight)), np.diff(self.seen_starts))
        return owner * self._stride + self.unseen_below

    @property
    def _stride(self) -> int:
        """By how much `_gaps` moves a row from the one before: more than the weight of all items."""
        return 1 + (self.item_num if self.weight_through is None else int(self.weight_through[-1]))


def negative_table(
    seen: Histories, item_num: int, weights: NDArray[np.int32] | None = None
) -> NegativeTable:
    """Prepare to draw items that are not in the histories.

    For users who have seen every item of positive weight, `unseen_weight` is 0, and nothing can be drawn.

    Parameters
    ----------
    seen
        Histories with items from 1 to `item_num`.
    item_num
        The largest item.
    weights
        (item_num + 1,) int32, how often each item is drawn in proportion to the others; 0 for item 0, with a
        sum below 2**31. None gives every item the same weight.

    Raises
    ------
    ValueError
        If `item_num` is above `MAX_ID`.
    """
    if item_num > MAX_ID:
        raise ValueError(f"item_num must be at most {MAX_ID}, got {item_num}")
    weight_through = None if weights is None else weights.cumsum(dtype=np.int32)
    all_weight = item_num if weight_through is None else int(weight_through[-1])
    # Some rows at a time, so that what is between the histories and the table stays in the cache.
    bounds = np.searchsorted(seen.offsets, np.arange(0, len(seen.items), _EVENTS_AT_A_TIME))
    bounds = np.unique(np.append(bounds, [0, len(seen.users)]))
    parts = [
        _seen_weights(seen.part(slice(first, last)), item_num, weights, weight_through)
        for first, last in pairwise(bounds.tolist())
    ]
    parts = parts or [_seen_weights(seen, item_num, weights, weight_through)]
    counts, below, through, seen_weight = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return NegativeTable(
        seen_starts=to_offsets(counts),
        unseen_below=below,
        seen_through=None if weights is None else through,
        unseen_weight=all_weight - seen_weight,
        weight_through=weight_through,
        item_num=item_num,
    )


def _seen_weights(
    seen: Histories,
    item_num: int,
    weights: NDArray[np.int32] | None,
    weight_through: NDArray[np.int32] | None,
) -> tuple[IntArray, NDArray[np.int32], NDArray[np.int32], IntArray]:
    """Return each row's number of distinct items, `unseen_below`, `seen_through`, and each row's seen weight."""
    num_rows, stride = len(seen.users), item_num + 1
    keys = np.repeat(np.arange(num_rows), np.diff(seen.offsets)) * stride + seen.items
    keys.sort(kind="stable")  # three times as fast, as timsort makes use of the order of the rows
    keys = keys[np.diff(keys, prepend=-1) > 0]  # distinct, ten times as fast as np.unique
    row, item = np.divmod(keys, stride)
    counts = np.bincount(row, minlength=num_rows)
    starts = to_offsets(counts)
    if weights is None or weight_through is None:
        through_all, item_through = np.arange(len(item) + 1), item
    else:
        through_all = to_offsets(weights[item].astype(np.int64))
        item_through = weight_through[item]
    seen_through = through_all[1:] - through_all[starts[:-1]][row]
    return (
        counts,
        (item_through - seen_through).astype(np.int32),
        seen_through.astype(np.int32) if weights is not None else _NOTHING,
        np.diff(through_all[starts]),
    )


_NOTHING = np.zeros(0, np.int32)
