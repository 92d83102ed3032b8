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
"""Which events of the same user and item stay.

"keep": all. "first", "last": one, the oldest or the newest. "consecutive": of events that follow one
another in the user's history, the oldest.
"""


def sort_events(users: IntArray, times: NDArray[Any] | None) -> IntArray:
    """The order of events by user, then time, then place. torch's stable sort is a parallel radix sort."""
    if times is None:
        return _stable_order(users)
    by_time = _stable_order(times.view(np.int64) if times.dtype.kind == "M" else times)
    return by_time[_stable_order(users[by_time])]


def _stable_order(keys: NDArray[Any]) -> IntArray:
    keys = np.require(keys, requirements=["C", "W"])  # Arrow's are read-only, which torch warns of
    return torch.sort(torch.from_numpy(keys), stable=True).indices.numpy()


def drop_duplicates(
    users: IntArray, items: IntArray, num_items: int, duplicates: Duplicates
) -> IntArray:
    """Positions, ascending, of the events that stay; events are in order."""
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
    """Positions, ascending, of the events of users and items that have enough events in what is left."""
    left = np.arange(len(users))
    while True:
        enough = np.bincount(users)[users] >= min_user
        enough &= np.bincount(items)[items] >= min_item
        if enough.all():
            return left
        left, users, items = left[enough], users[enough], items[enough]


def renumber(column: Codes, noun: str) -> tuple[IntArray, IdMap]:
    """Numbers from 1 without gaps, in the order of codes, and the map of the ids that are left."""
    present = np.bincount(column.codes, minlength=len(column.ids)) > 0
    numbers: IntArray = np.cumsum(present)
    return numbers[column.codes], IdMap(column.ids[present], noun)
