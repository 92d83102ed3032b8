"""Conversion of the users, histories and times in a request to the model's indices and integers."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from itertools import chain
from typing import Any, Literal
from uuid import UUID

import numpy as np

from ssept_ext.data.histories import Histories, IntArray, check_ids, check_mapping
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.raw_ids import RawId, id_list
from ssept_ext.data.times import to_times
from ssept_ext.network.identity import reads_times
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.checks import shown

CANDIDATES = "candidates, the same for all users,"
"""What error messages call the argument."""
_ACCEPTED = {"int64": (int, np.integer), "str": str, "uuid": UUID}


def id_lists(histories: Any, users: Iterable[Any] | None = None) -> dict[Any, list[Any]]:
    """Map users, by default all of `histories`, to lists of items; a TypeError names what is no such mapping."""
    check_mapping(histories)
    asked = histories if users is None else users
    return {user: id_list(f"histories[{shown(user)}]", histories.get(user, ())) for user in asked}


def check_indices(model: SequentialRecommender, noun: str, ids: Collection[int]) -> IntArray:
    """Return "user" or "item" ids of a model without raw ids as an array.

    Raises
    ------
    ValueError, IndexError
        If one is not an integer from 1, or is outside the model's table; names it.
    """
    numbers = check_ids(ids, noun)
    largest = getattr(model, f"{noun}_num", None)  # SASREC has no users
    if largest is not None and numbers.size and numbers.max() > largest:
        raise IndexError(
            f"{noun} has id {numbers.max()}, outside the model's table of {largest + 1} rows (0..{largest})"
        )
    return numbers


def encode_items(
    known: KnownHistories, histories: Iterable[list[Any]], what: str
) -> list[IntArray]:
    """Return the indices of each history's items, 0 for those to drop: unknown ones, which a warning counts."""
    given = list(histories)
    numbers = encode_ids(known.item_ids, list(chain.from_iterable(given)))
    encoded = np.split(numbers, np.cumsum([len(items) for items in given])[:-1]) if given else []
    if unknown := np.count_nonzero(numbers == 0):
        warnings.warn(
            f"dropped {unknown} of {len(numbers)} {what}, because their items are not among the "
            f"{len(known.item_ids)} that the model knows",
            stacklevel=4,
        )
    return encoded


def encode_ids(
    id_map: IdMap, ids: Collection[RawId], unknown: Literal["raise", "zero"] = "zero"
) -> IntArray:
    """Return the indices of raw ids, 0 for unknown ones, or a KeyError; a TypeError as `check_types`."""
    check_types(id_map, ids)
    return id_map.encode(list(ids), unknown)


def check_types(id_map: IdMap, ids: Iterable[Any]) -> None:
    """Raise a TypeError that names an id of another type than in training, which would pass for unknown."""
    for value in ids:
        # True is an int, and would pass for 1.
        if not isinstance(value, _ACCEPTED[id_map.type]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise TypeError(
                f"{id_map.noun} ids must be {id_map.type}, as in training, "
                f"got {shown(value)} of type {type(value).__name__}"
            )


def times_of(history_times: Any, histories: Mapping[Any, Sequence[Any]]) -> dict[Any, IntArray]:
    """Return the times of each history's events; a TypeError if that is no mapping, else as `times_of_events`."""
    if not isinstance(history_times, Mapping):
        raise TypeError(
            f"history_times must map each user of histories to the times of the events, got {shown(history_times)}"
        )
    return {
        user: times_of_events(
            f"history_times[{shown(user)}]", history_times.get(user, ()), len(items)
        )
        for user, items in histories.items()
    }


def times_of_events(name: str, times: Any, num_events: int) -> IntArray:
    """Return as many times as events, oldest first.

    Raises
    ------
    TypeError, ValueError
        If something is no time, there are more or fewer, or they are not in order; names the argument.
    """
    found = to_times(name, times)
    if len(found) != num_events:
        raise ValueError(f"{name} must be {num_events} times, one for each event, got {len(found)}")
    if (np.diff(found) < 0).any():
        raise ValueError(f"{name} must be in the order of time, oldest first")
    return found


def requested_at(at: Any, num_users: int) -> IntArray | None:
    """(R,) times of a request: one for all users or one for each; None if none was given."""
    if at is None:
        return None
    if isinstance(at, (int, float, date, np.generic)):
        return np.repeat(to_times("at", [at]), num_users)
    times = to_times("at", at)
    if len(times) != num_users:
        raise ValueError(
            f"at must be one time, or one for each of {num_users} users, got {len(times)}"
        )
    return times


def times_to_ask_at(
    model: SequentialRecommender, asked: Histories, at: IntArray | None
) -> IntArray | None:
    """Return when the next item of each history is asked for, by default at its usual next time.

    None for a model that reads no times, for which none may be given. No history may be empty.
    """
    if not reads_times(model):
        if at is not None:
            raise ValueError("at must be None for a model without time_bias, which reads no times")
        return None
    if asked.times is None:
        raise ValueError(
            "histories must have times, because the model has time_bias: pass history_times, or a "
            "SASRecDataSet with times"
        )
    if at is None:
        return asked.usual_next_times()
    newest = asked.times[asked.offsets[1:] - 1]
    early = at < newest
    if early.any():
        row = int(early.argmax())
        raise ValueError(
            f"at must not be before the newest event of a user's history, in the unit of its times: that of row {row} "
            f"is at {newest[row]}, got {at[row]}"
        )
    return at
