"""Sorting, deduplicating, filtering and numbering of events."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.sources.columns import Codes, IdCodes

Kept: TypeAlias = IntArray | slice
"""Positions of events, or the slice of all."""

Duplicates = Literal["keep", "first", "last", "consecutive"]
"""Which events of the same user and item to keep.

"keep": all. "first" or "last": the oldest or the newest. "consecutive": the oldest of each run of events that
follow one another directly in the user's history.
"""


def sort_events(users: IdCodes, times: NDArray[Any] | None) -> IntArray:
    """Return the order of events by user, then time, then position in the source."""
    if times is None:
        return _stable_order(users)
    by_time = _stable_order(times.view(np.int64) if times.dtype.kind == "M" else times)
    return by_time[_stable_order(users[by_time])]


def _stable_order(keys: NDArray[Any]) -> IntArray:
    # torch's stable sort is a parallel radix sort. It warns of read-only arrays, which Arrow's are.
    keys = np.require(keys, requirements=["C", "W"])
    return torch.sort(torch.from_numpy(keys), stable=True).indices.numpy()


def drop_duplicates(users: IdCodes, items: IdCodes, num_items: int, duplicates: Duplicates) -> Kept:
    """Return the positions, ascending, of the events to keep; events are sorted by user and time."""
    if duplicates == "keep":
        return slice(None)
    pairs = users * np.int64(num_items) + items
    if duplicates == "consecutive":
        return np.flatnonzero(np.diff(pairs, prepend=-1))
    order = _stable_order(pairs)
    same = np.diff(pairs[order]) == 0
    edge = np.append(~same, True) if duplicates == "last" else np.insert(~same, 0, True)
    return np.sort(order[edge])


def k_core(users: IdCodes, items: IdCodes, min_user: int, min_item: int) -> Kept:
    """Return the positions, ascending, of the events of the k-core: every user and item left has enough."""
    left: Kept = slice(None)
    while True:
        enough = (np.bincount(users) >= min_user)[users]
        enough &= (np.bincount(items) >= min_item)[items]
        if enough.all():
            return left
        left = np.flatnonzero(enough) if isinstance(left, slice) else left[enough]
        users, items = users[enough], items[enough]


def renumber(column: Codes, noun: str) -> tuple[IntArray, IdMap]:
    """Return numbers from 1 without gaps, in the order of codes, and the map of the remaining ids."""
    present = np.bincount(column.codes, minlength=len(column.ids)) > 0
    numbers: IntArray = np.cumsum(present)
    return numbers[column.codes], column.ids.only(np.flatnonzero(present), noun)
