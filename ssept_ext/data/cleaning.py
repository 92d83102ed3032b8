"""Sorting, deduplicating, filtering and numbering of events."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.sources.columns import Codes

Duplicates = Literal["keep", "first", "last", "consecutive"]
"""Which events of the same user and item to keep.

"keep": all. "first" or "last": the oldest or the newest. "consecutive": the oldest of each run of events that
follow one another directly in the user's history.
"""


def sort_events(users: IntArray, times: NDArray[Any] | None) -> IntArray:
    """Return the order of events by user, then time, then position in the source."""
    if times is None:
        return _stable_order(users)
    by_time = _stable_order(times.view(np.int64) if times.dtype.kind == "M" else times)
    return by_time[_stable_order(users[by_time])]


def _stable_order(keys: NDArray[Any]) -> IntArray:
    # torch's stable sort is a parallel radix sort. It warns of read-only arrays, which Arrow's are.
    keys = np.require(keys, requirements=["C", "W"])
    return torch.sort(torch.from_numpy(keys), stable=True).indices.numpy()


def drop_duplicates(
    users: IntArray, items: IntArray, num_items: int, duplicates: Duplicates
) -> IntArray:
    """Return the positions, ascending, of the events to keep; events are sorted by user and time."""
    if duplicates == "keep":
        return np.arange(len(users))
    pairs = users * num_items + items
    if duplicates == "consecutive":
        return np.flatnonzero(np.diff(pairs, prepend=-1))
    order = _stable_order(pairs)
    same = np.diff(pairs[order]) == 0
    edge = np.append(~same, True) if duplicates == "last" else np.insert(~same, 0, True)
    return np.sort(order[edge])


def k_core(users: IntArray, items: IntArray, min_user: int, min_item: int) -> IntArray:
    """Return the positions, ascending, of the events of the k-core: every user and item left has enough."""
    left = np.arange(len(users))
    while True:
        enough = np.bincount(users)[users] >= min_user
        enough &= np.bincount(items)[items] >= min_item
        if enough.all():
            return left
        left, users, items = left[enough], users[enough], items[enough]


def renumber(column: Codes, noun: str) -> tuple[IntArray, IdMap]:
    """Return numbers from 1 without gaps, in the order of codes, and the map of the remaining ids."""
    present = np.bincount(column.codes, minlength=len(column.ids)) > 0
    numbers: IntArray = np.cumsum(present)
    return numbers[column.codes], IdMap(column.ids[present], noun)
