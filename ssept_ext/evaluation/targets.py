"""Which held-out events are to be found, and after which history each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, join, to_offsets
from ssept_ext.evaluation.candidates import (
    Split,
    check_items,
    input_histories,
    measurable_users,
)

Targets = Literal["next", "all", "successive"]
"""Which events of a part are to be found: each user's first; all, after the events before the part; or all, each after
all events before it."""

EVENTS_AT_A_TIME = 1 << 22
"""Events of histories that are laid out together: 32 MiB of items, and as much of times."""


@dataclass(frozen=True)
class Questions:
    """n events that are to be found, ordered by user and time."""

    targets: Targets
    users: IntArray
    """(n,) whose event it is."""
    items: IntArray
    """(n,) the item to find."""
    at: IntArray | None
    """(n,) when the event was; None unless all times are known."""
    rows: IntArray
    """(n,) row of the user in `histories`."""
    lengths: IntArray
    """(n,) how many of the first events of that row are the input."""
    histories: Histories
    """Of each user, the events that may be an input."""

    def inputs(self, some: slice) -> Histories:
        """Lay out the inputs of consecutive questions, a row for each."""
        if self.targets == "next":
            return self.histories.part(some)
        return self.histories.first(self.rows[some], self.lengths[some])

    def blocks(self, some: slice) -> Iterator[slice]:
        """Cut consecutive questions into blocks whose inputs have up to `EVENTS_AT_A_TIME` events, or one input."""
        events = to_offsets(self.lengths[some])
        first = 0
        while first < len(events) - 1:
            end = int(np.searchsorted(events, events[first] + EVENTS_AT_A_TIME, "right")) - 1
            end = max(end, first + 1)
            yield slice(some.start + first, some.start + end)
            first = end


def ask(dataset: SASRecDataSet, split: Split, targets: Targets) -> Questions:
    """Find the events to be found of the users with a training event.

    Raises
    ------
    ValueError
        If there are none, or an item id is outside 1..itemnum.
    """
    users = measurable_users(dataset, split)
    before = input_histories(dataset, users, split)
    held_out = dataset.histories(split, users)
    for histories in (before, held_out):
        check_items(histories, dataset.itemnum)
    counts = np.diff(held_out.offsets) if targets != "next" else np.ones(len(users), np.int64)
    rows = np.repeat(np.arange(len(users)), counts)
    place = np.arange(len(rows)) - np.repeat(to_offsets(counts)[:-1], counts)
    event = held_out.offsets[rows] + place
    lengths = np.diff(before.offsets)[rows]
    return Questions(
        targets=targets,
        users=users[rows],
        items=held_out.items[event],
        at=None if before.times is None or held_out.times is None else held_out.times[event],
        rows=rows,
        lengths=lengths + place if targets == "successive" else lengths,
        histories=join(before, held_out) if targets == "successive" else before,
    )
