"""Negative sampling: items that a user has not seen, for training and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import MAX_ID, Histories, IntArray, to_offsets
from ssept_ext.data.id_map import RawId


class NothingUnseenError(ValueError):
    """A user has seen every item, so that no negative can be drawn."""

    def __init__(self, user: int, num_items: int, raw_id: RawId | None = None) -> None:
        name = user if raw_id is None else raw_id
        super().__init__(
            f"user {name!r} has seen all {num_items} items that negatives are drawn from: no negative "
            f"can be drawn"
        )
        self.user, self.num_items = user, num_items


@dataclass(frozen=True)
class NegativeTable:
    """For each of R rows, the items of 1..item_num that are not in its history.

    Every item i weighs `w_i`, in proportion to how often it is drawn, and lies on the line of all
    weight from `weight_through[i - 1]` to `weight_through[i]`. Take the row's seen items out of the
    line: `unseen_below` says where each gap is on what remains, `seen_through` by how much a point
    behind it must be moved up to be on the whole line again. So a binary search turns a random
    point of the remaining line into an unseen item, no item is ever tried and rejected, and the
    memory is that of the histories, whatever the number of items.
    """

    seen_starts: IntArray
    """(R + 1,) where the S distinct items of each row start."""
    unseen_below: NDArray[np.int32]
    """(S,) for each distinct item of each row, ascending: the weight of unseen items below it."""
    seen_through: NDArray[np.int32] | None
    """(S,) the weight of the row's seen items up to and with this one; None where every item weighs 1."""
    unseen_weight: IntArray
    """(R,) weight of all items that are not in the history."""
    weight_through: NDArray[np.int32] | None
    """(item_num + 1,) weight of items 0 to i; None where every item weighs 1."""
    item_num: int

    def native_arguments(self) -> dict[str, Any]:
        """The fields by name, for the extension."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def draw(self, key: tuple[int, int], count: int) -> IntArray:
        """(R, count) items that each row has not seen, with replacement, by weight.

        A pure function of the arguments: the doubles in [0, 1) of NumPy's Philox with this key, row
        after row, each made an item by `at`.
        """
        if _extension.native is not None:
            native: IntArray = _extension.native.draw_unseen(
                **self.native_arguments(), key=key, count=count
            )
            return native
        num_rows = len(self.unseen_weight)
        rng = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        return self.at(np.arange(num_rows)[:, None], rng.random((num_rows, count)))

    def at(self, row: IntArray, uniform: NDArray[np.float64]) -> IntArray:
        """Turn numbers in [0, 1) into unseen items of these rows; both broadcast to the result.

        What `draw_unseen` in `csrc/sampler` computes.
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
        """(S,) `unseen_below` of all rows one after the other on a single line, for a single search."""
        owner = np.repeat(np.arange(len(self.unseen_weight)), np.diff(self.seen_starts))
        return owner * self._stride + self.unseen_below

    @property
    def _stride(self) -> int:
        """What each row takes of that line: more than all weight."""
        return 1 + (self.item_num if self.weight_through is None else int(self.weight_through[-1]))


def negative_table(
    seen: Histories, item_num: int, weights: NDArray[np.int32] | None = None
) -> NegativeTable:
    """Find what the users of `seen` have not seen.

    Parameters
    ----------
    seen : with items of 1..item_num
    weights : (item_num + 1,) with a sum below 2**31, that of item 0 being 0; None weighs every item 1

    Raises
    ------
    ValueError
        If `item_num` is above `MAX_ID`.
    NothingUnseenError
        If a user has seen every item of positive weight; names the user.
    """
    if item_num > MAX_ID:
        raise ValueError(f"item_num must be at most {MAX_ID}, got {item_num}")
    num_rows, stride = len(seen.users), item_num + 1
    keys = np.repeat(np.arange(num_rows), np.diff(seen.offsets)) * stride + seen.items
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) > 0]  # distinct, ten times as fast as np.unique
    row, item = np.divmod(keys, stride)
    seen_starts = to_offsets(np.bincount(row, minlength=num_rows))
    if weights is None:
        through_all = np.arange(len(item) + 1)
        item_through, weight_through, num_weighted, all_weight = item, None, item_num, item_num
    else:
        through_all = to_offsets(weights[item].astype(np.int64))
        weight_through = weights.cumsum(dtype=np.int32)
        item_through, all_weight = weight_through[item], int(weight_through[-1])
        num_weighted = int(np.count_nonzero(weights))
    seen_through = through_all[1:] - through_all[seen_starts[:-1]][row]
    unseen_weight = all_weight - np.diff(through_all[seen_starts])
    if num_rows and unseen_weight.min() <= 0:
        raise NothingUnseenError(int(seen.users[unseen_weight.argmin()]), num_weighted)
    return NegativeTable(
        seen_starts=seen_starts,
        unseen_below=(item_through - seen_through).astype(np.int32),
        seen_through=None if weights is None else seen_through.astype(np.int32),
        unseen_weight=unseen_weight,
        weight_through=weight_through,
        item_num=item_num,
    )


def philox_key(seed: int | None) -> tuple[int, int]:
    """The 64-bit words of a Philox key made of a seed; None makes a fresh one."""
    first, second = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    return first, second
