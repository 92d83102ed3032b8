"""Histories of users as flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ID = 2**31 - 1
"""Largest user or item id. Ids index embedding tables: larger ones are hashes, to be renumbered."""


IntArray = NDArray[np.int64]


class Histories(NamedTuple):
    """Histories in a row: user `users[r]` has `items[offsets[r]:offsets[r + 1]]`, oldest first."""

    users: IntArray
    """(R,)"""
    offsets: IntArray
    """(R + 1,)"""
    items: IntArray
    """(E,)"""

    def part(self, rows: slice) -> Histories:
        """Some of the rows, consecutive ones."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Histories(
            self.users[rows], offsets - offsets[0], self.items[offsets[0] : offsets[-1]]
        )


def to_csr(histories: Mapping[int, Sequence[int]]) -> Histories:
    """Lay out `histories` (user id to item ids) in arrays, users in the order of the mapping.

    Raises ValueError for ids that are not integers from 1 to `MAX_ID`, naming user and id.
    """
    users = np.array(list(histories))
    items = np.array(list(chain.from_iterable(histories.values())))
    for ids in (users, items):
        integers = ids.ndim == 1 and ids.dtype.kind in "iu"
        if ids.size and not (integers and ids.min() >= 1 and ids.max() <= MAX_ID):
            raise ValueError(f"histories: {_first_bad_id(histories)}")
    offsets = np.zeros(len(histories) + 1, np.int64)
    np.cumsum([len(history) for history in histories.values()], out=offsets[1:])
    return Histories(users.astype(np.int64), offsets, items.astype(np.int64))


def _first_bad_id(histories: Mapping[int, Sequence[int]]) -> str:
    for user, history in histories.items():
        for name, value in (("user", user), *(("item", item) for item in history)):
            if not (isinstance(value, (int, np.integer)) and 1 <= value <= MAX_ID):
                return (
                    f"{name} id must be an integer from 1 to {MAX_ID}, got {value!r} (user {user})"
                )
    raise AssertionError("every id is good")


def to_offsets(counts: IntArray) -> IntArray:
    """(R,) numbers of things -> (R + 1,) where those of each row start, and the end."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def first_events(histories: Histories, counts: Sequence[int]) -> Histories:
    """The oldest `counts[r]` events of each row r."""
    offsets = to_offsets(np.array(counts, np.int64))
    event = np.arange(offsets[-1]) + np.repeat(histories.offsets[:-1] - offsets[:-1], counts)
    return Histories(histories.users, offsets, histories.items[event])
