"""Histories of users as flat arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssept_ext.utils.checks import shown
from ssept_ext.utils.files import DIGEST_LENGTH

MAX_ID = 2**31 - 1
"""Largest user or item id. Ids index embedding tables, so larger ones are hashes that must be renumbered."""


IntArray = NDArray[np.int64]


class Histories(NamedTuple):
    """The events of R users: user `users[r]` has `items[offsets[r]:offsets[r + 1]]`, oldest first.

    Arrays are shared rather than copied wherever possible, so do not change them in place.

    Examples
    --------
    >>> histories = Histories.from_mapping({7: [3, 1], 4: [5]})
    >>> histories.items
    array([3, 1, 5])
    >>> histories.of([4]).to_dict()
    {4: [5]}
    """

    users: IntArray
    """(R,)"""
    offsets: IntArray
    """(R + 1,)"""
    items: IntArray
    """(E,)"""
    times: IntArray | None = None
    """(E,) int64 time of each event in any unit, the same for all; None if times are not known."""

    @classmethod
    def from_mapping(cls, histories: Mapping[int, Sequence[int]]) -> Histories:
        """Lay out a mapping of user id to item ids in arrays; a ValueError names the user and a wrong id."""
        check_mapping(histories)
        unordered = {set, frozenset, dict} & set(map(type, histories.values()))
        if unordered:
            raise TypeError(
                f"histories must be sequences, oldest item first, got a {unordered.pop().__name__}"
            )
        users, items = list(histories), list(chain.from_iterable(histories.values()))
        try:
            ids = check_ids(users, "user"), check_ids(items, "item")
        except ValueError as error:
            raise ValueError(f"histories: {_first_bad_id(histories) or error}") from None
        lengths = np.fromiter(map(len, histories.values()), np.int64, len(histories))
        return cls(ids[0], to_offsets(lengths), ids[1])

    def checked(self) -> Histories:
        """Return the same as int64, copied only where needed; a ValueError says why the three arrays do not fit."""
        users, items = check_ids(self.users, "user"), check_ids(self.items, "item")
        if (np.diff(users) <= 0).any() and len(np.unique(users)) < len(users):
            raise ValueError(
                f"histories: users must be distinct, got {len(np.unique(users))} ids for {len(users)} rows"
            )
        given = np.asarray(self.offsets)
        offsets = given.astype(np.int64, copy=False)
        if not (
            given.dtype.kind in "iu"
            and offsets.shape == (len(users) + 1,)
            and offsets[0] == 0
            and offsets[-1] == len(items)
            and (np.diff(offsets) >= 0).all()
        ):
            raise ValueError(
                f"histories: offsets must be {len(users) + 1} integers that rise from 0 to the "
                f"{len(items)} events"
            )
        times = self.times
        if times is not None:
            times = np.asarray(times)
            if times.shape != items.shape or times.dtype.kind not in "iu":
                raise ValueError(
                    f"histories: times must be {len(items)} integers, one for each event, got "
                    f"{times.dtype} of shape {times.shape}"
                )
            times = times.astype(np.int64, copy=False)
        return Histories(users, offsets, items, times)

    def digest(self, *, with_times: bool = False) -> str:
        """Return the first 64 bits of a SHA-256 of the rows with events, in hexadecimal, the same on every machine.

        Times are part of it only `with_times`.
        """
        lengths = np.diff(self.offsets)
        users, lengths = self.users[lengths > 0], lengths[lengths > 0]
        sha = hashlib.sha256(str(len(users)).encode())
        for array in (users, lengths, self.items):
            sha.update(np.ascontiguousarray(array, "<i4").data)
        if with_times and self.times is not None:
            sha.update(np.ascontiguousarray(self.times, "<i8").data)
        return sha.hexdigest()[:DIGEST_LENGTH]

    def to_dict(self) -> dict[int, list[int]]:
        """Map each user id to the list of the user's item ids, in the order of the rows."""
        bounds, items = self.offsets.tolist(), self.items.tolist()
        return {
            user: items[start:end]
            for user, (start, end) in zip(self.users.tolist(), pairwise(bounds), strict=True)
        }

    def part(self, rows: slice) -> Histories:
        """Some of the rows, consecutive ones."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        events = slice(offsets[0], offsets[-1])
        return self._at_events(self.users[rows], offsets - offsets[0], events)

    def of(self, users: ArrayLike) -> Histories:
        """The histories of these users, in this order; empty for users without a row.

        A user may be asked for more than once.
        """
        wanted = np.asarray(users, np.int64)
        if np.array_equal(self.users, wanted):
            return self
        lengths = np.diff(self.offsets, append=self.offsets[-1])  # a last, empty row: not found
        order = np.argsort(self.users, kind="stable")
        place = np.searchsorted(self.users, wanted, sorter=order)
        row = np.append(order, len(self.users))[place]
        row = np.where(np.append(self.users, 0)[row] == wanted, row, len(self.users))
        offsets = to_offsets(lengths[row])
        event = np.arange(offsets[-1])
        event += np.repeat(self.offsets[row] - offsets[:-1], lengths[row])
        return self._at_events(wanted, offsets, event)

    def only(self, kept: NDArray[np.bool_]) -> Histories:
        """Some of the rows, of which there is a copy only if not all are kept."""
        if kept.all():
            return self
        lengths = np.diff(self.offsets)
        return self._at_events(
            self.users[kept], to_offsets(lengths[kept]), np.repeat(kept, lengths)
        )

    def between(self, start: IntArray, end: IntArray) -> Histories:
        """Events `start[r]` up to but not including `end[r]` of each row r, counted from its oldest."""
        lengths = np.diff(self.offsets)
        runs = np.stack([start, end - start, lengths - end], 1).ravel()
        kept = np.repeat(np.tile([False, True, False], len(lengths)), runs)
        return self._at_events(self.users, to_offsets(end - start), kept)

    def first(self, rows: IntArray, counts: IntArray) -> Histories:
        """The first `counts[r]` events of each of some rows, which may be asked for more than once."""
        offsets = to_offsets(counts)
        event = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return self._at_events(self.users[rows], offsets, event)

    def oldest(self) -> IntArray:
        """(R,) the first item of each row, 0 where the row is empty."""
        return self._oldest(self.items)

    def oldest_times(self) -> IntArray | None:
        """(R,) the time of the first event of each row, 0 where the row is empty; None if times are not known."""
        return None if self.times is None else self._oldest(self.times)

    def usual_next_times(self) -> IntArray:
        """(R,) when the next event of each row is to be expected: its newest time plus its median gap between events.

        Of two medians the shorter; a row of one event has no gap, which counts as 0. No row may be empty.
        """
        assert self.times is not None
        lengths = np.diff(self.offsets)
        gaps = np.diff(self.times, prepend=0)
        gaps[self.offsets[:-1]] = -1  # of no event before: sorted first in its row
        order = np.lexsort((gaps, np.repeat(np.arange(len(lengths)), lengths)))
        gap = gaps[order[self.offsets[:-1] + lengths // 2]]
        next_times: IntArray = self.times[self.offsets[1:] - 1] + np.maximum(gap, 0)
        return next_times

    def _oldest(self, values: IntArray) -> IntArray:
        first = np.append(values, 0)[self.offsets[:-1]]
        return np.where(np.diff(self.offsets) > 0, first, 0)

    def _at_events(self, users: IntArray, offsets: IntArray, events: Any) -> Histories:
        """Rows of these users, with the events that an index of NumPy takes."""
        times = None if self.times is None else self.times[events]
        return Histories(users, offsets, self.items[events], times)


def as_histories(histories: Mapping[int, Sequence[int]] | Histories) -> Histories:
    """Return histories of either form as checked arrays."""
    if isinstance(histories, Histories):
        return histories.checked()
    return Histories.from_mapping(histories)


def join(*parts: Histories) -> Histories:
    """Concatenate the events of each row; all parts have the same users in the same order.

    Times are known where those of all parts are.
    """
    lengths = np.stack([np.diff(part.offsets) for part in parts])  # (P, R)
    offsets = to_offsets(lengths.sum(0))
    starts = offsets[:-1] + lengths.cumsum(0) - lengths
    places = [
        np.arange(len(part.items)) + np.repeat(start - part.offsets[:-1], length)
        for part, start, length in zip(parts, starts, lengths, strict=True)
    ]

    def joined(values: Sequence[IntArray | None]) -> IntArray:
        to = np.empty(offsets[-1], np.int64)
        for place, of_part in zip(places, values, strict=True):
            to[place] = of_part
        return to

    times = [part.times for part in parts]
    known = all(x is not None for x in times)
    items = joined([part.items for part in parts])
    return Histories(parts[0].users, offsets, items, joined(times) if known else None)


def check_mapping(histories: Any) -> None:
    """Raise a TypeError if histories are not a mapping of users to items."""
    if not isinstance(histories, Mapping):
        raise TypeError(
            f"histories must map each user to a sequence of items, as {{user: [item, item]}} does, "
            f"got {type(histories).__name__}"
        )


def check_ids(ids: Collection[int] | NDArray[Any], noun: str) -> IntArray:
    """Return ids as a one-dimensional array; a ValueError names the first that is no integer from 1 to `MAX_ID`."""
    array = ids if isinstance(ids, np.ndarray) else _to_array(list(ids))
    if array.ndim == 1 and array.dtype.kind in "iu":
        if not array.size or (array.min() >= 1 and array.max() <= MAX_ID):
            return array.astype(np.int64, copy=False)
        bad = array[(array < 1) | (array > MAX_ID)][0].item()
    elif all(map(_is_id, ids)):  # none at all, or of types that NumPy has no common integer for
        return np.fromiter(ids, np.int64, len(ids))
    else:
        bad = next(value for value in ids if not _is_id(value))
    raise ValueError(f"{noun} id must be an integer from 1 to {MAX_ID}, got {shown(bad)}")


def to_offsets(counts: IntArray) -> IntArray:
    """Turn the number of events of each row, (R,), into where each row starts and the last ends, (R + 1,)."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _to_array(values: list[Any]) -> NDArray[Any]:
    """The values as NumPy has them; an empty matrix of those of several types or lengths."""
    try:  # NumPy takes True for 1 among integers
        return np.empty((0, 0)) if {bool, np.bool_} & set(map(type, values)) else np.array(values)
    except (ValueError, OverflowError):
        return np.empty((0, 0))


def _is_id(value: object) -> bool:
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return is_integer and 1 <= value <= MAX_ID  # type: ignore[operator]


def _first_bad_id(histories: Mapping[int, Sequence[int]]) -> str | None:
    for user, history in histories.items():
        for noun, value in (("user", user), *(("item", item) for item in history)):
            if not _is_id(value):
                return f"{noun} id must be an integer from 1 to {MAX_ID}, got {shown(value)} (user {shown(user)})"
    return None
