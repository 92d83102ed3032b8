"""More events for the histories that a model knows, with the users and items that they bring."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.text import group_by_user

NEAR = 5
"""Events before and after one of a new item that count as its neighbours."""


class Growth(NamedTuple):
    """Histories after events were added."""

    known: KnownHistories
    """The histories, where new users and items have the numbers after those of the earlier ones."""
    new_events: int
    """Number of events added."""
    known_events: int
    """Number of events that were given, but known already."""
    new_users: int
    new_items: int


def grow(known: KnownHistories, events: Interactions) -> Growth:
    """Add events to histories, each user's in the order of time.

    An event with the user, item and time of a known one is not added again. Without times, no event can be recognised
    so, and those given come after the known ones.

    Raises
    ------
    TypeError
        If ids are of another type than the known ones.
    ValueError
        If there are no histories, only they have times, or neither a user nor an item of the events is known.

    Examples
    --------
    >>> import pyarrow as pa
    >>> columns = {"user": ["ann", "bob"], "item": [70, 20], "timestamp": [1, 2]}
    >>> known = KnownHistories.from_interactions(Interactions.from_dataframe(pa.table(columns)))
    >>> columns = {"user": ["ann", "eve", "ann"], "item": [70, 20, 90], "timestamp": [1, 3, 4]}
    >>> growth = grow(known, Interactions.from_dataframe(pa.table(columns)))
    >>> growth.new_events, growth.known_events, growth.new_users, growth.new_items
    (2, 1, 1, 1)
    >>> growth.known.histories.to_dict()
    {1: [1, 3], 2: [2], 3: [2]}
    """
    if known.histories is None:
        raise ValueError("the model was saved without histories, to which events could be added")
    given = events.to_histories()
    if known.histories.times is not None and given.times is None:
        raise ValueError("events must have times, because those that the model knows have them")
    num_users, num_items = len(known.user_ids), len(known.item_ids)
    user_ids, of_users = known.user_ids.joined(events.user_ids)
    item_ids, of_items = known.item_ids.joined(events.item_ids)
    if of_users.min() > num_users and of_items.min() > num_items:
        raise ValueError(
            f"none of the {len(of_users)} users and {len(of_items)} items of the events is known: they are of other "
            f"data, or have ids of another kind"
        )
    numbered = given._replace(users=of_users, items=of_items[given.items - 1])
    added = _columns(numbered)
    is_new = ~_are_known(known.histories, added)
    added = added[:, is_new]
    # A user or item whose events are all known is known itself, so every new one has an event that is added.
    both = np.concatenate([_columns(known.histories), added], 1)
    with_times = known.histories.times is not None
    grown = group_by_user(both[0], both[1], both[2] if with_times else None)
    grown = grown.of(np.arange(1, len(user_ids) + 1))
    return Growth(
        KnownHistories(user_ids, item_ids, grown),
        new_events=int(is_new.sum()),
        known_events=int((~is_new).sum()),
        new_users=len(user_ids) - num_users,
        new_items=len(item_ids) - num_items,
    )


def neighbours(histories: Histories, num_known: int) -> tuple[IntArray, IntArray]:
    """Find the known items, 1 to `num_known`, that users had up to `NEAR` events before or after a new one.

    Returns
    -------
    tuple[IntArray, IntArray]
        (P,) new items, and (P,) a neighbour of each; a pair may be there more than once.
    """
    items = histories.items
    row = np.repeat(np.arange(len(histories.users)), np.diff(histories.offsets))
    place = np.flatnonzero(items > num_known)
    pairs = []
    for shift in (*range(-NEAR, 0), *range(1, NEAR + 1)):
        other = place + shift
        inside = (other >= 0) & (other < len(items))
        of, other = place[inside], other[inside]
        near = (row[of] == row[other]) & (items[other] <= num_known)
        pairs.append(np.stack([items[of[near]], items[other[near]]]))
    of_items, found = np.concatenate(pairs, 1)
    return of_items, found


def _columns(histories: Histories) -> NDArray[np.int64]:
    """(3, E) user, item and time of each event; a time that is not known is 0."""
    users = np.repeat(histories.users, np.diff(histories.offsets))
    times = np.zeros_like(users) if histories.times is None else histories.times
    return np.stack([users, histories.items, times])


def _are_known(known: Histories, added: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(E,) which events, as `_columns` has them, are among the known ones."""
    if known.times is None:
        return np.zeros(added.shape[1], np.bool_)
    before = _columns(known.of(np.unique(added[0])))
    _, event = np.unique(np.concatenate([before, added], 1), axis=1, return_inverse=True)
    event = event.reshape(-1)  # NumPy 2.0 returns a row
    num_before = before.shape[1]
    found: NDArray[np.bool_] = np.isin(event[num_before:], event[:num_before])
    return found
