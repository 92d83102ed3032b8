"""Where histories are cut into training, validation and test events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeAlias

import numpy as np

from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.options import PROPER_FRACTION, check_number


@dataclass(frozen=True)
class LastEvents:
    """The last events of each user are held out, of users with enough of them."""

    valid_size: int = 1
    test_size: int = 1
    min_interactions: int = 3

    def __post_init__(self) -> None:
        held_out = check_at_least("valid_size", self.valid_size, 0)
        held_out += check_at_least("test_size", self.test_size, 0)
        if check_at_least("min_interactions", self.min_interactions, 1) < held_out + 1:
            raise ValueError(
                f"min_interactions must be at least valid_size + test_size + 1 = {held_out + 1}, "
                f"got {self.min_interactions}"
            )

    def ends(self, histories: Histories) -> tuple[IntArray, IntArray]:
        """Return how many events of each row are for training, and how many before the test part: (R,) each."""
        lengths = np.diff(histories.offsets)
        is_split = lengths >= self.min_interactions
        test = lengths - self.test_size * is_split
        return test - self.valid_size * is_split, test


@dataclass(frozen=True)
class ByTime:
    """All events before `valid_from` are for training, those from `test_from` on for the test."""

    valid_from: int
    test_from: int

    def ends(self, histories: Histories) -> tuple[IntArray, IntArray]:
        """As `LastEvents.ends`."""
        return _num_before(histories, self.valid_from), _num_before(histories, self.test_from)


Split: TypeAlias = LastEvents | ByTime
"""A rule that cuts each history in three."""


@dataclass(frozen=True)
class SplitCounts:
    """What is in the parts of a split by time. New users and items have no training event, so no trained vector."""

    valid_from: int
    """The first moment of the validation part."""
    test_from: int
    """The first moment of the test part."""
    train_events: int
    valid_events: int
    test_events: int
    valid_users: int
    """Users with training and validation events, who are evaluated."""
    test_users: int
    """Users with training and test events, who are evaluated."""
    new_users: int
    """Users whose first event is not for training: they are not evaluated."""
    new_items: int
    """Items whose first event is not for training: they are ranked, and may be the item to find."""

    def __str__(self) -> str:
        return (
            f"{self.train_events:,} training events before {_shown(self.valid_from)}, {self.valid_events:,} validation "
            f"events ({self.valid_users:,} users), {self.test_events:,} test events from {_shown(self.test_from)} on "
            f"({self.test_users:,} users); {self.new_users:,} users and {self.new_items:,} items are new after training"
        )


def _shown(moment: int) -> str:
    """The moment and, if it may be in seconds since 1970, its date."""
    if not _SECONDS[0] <= moment < _SECONDS[1]:
        return f"{moment}"
    date = datetime.fromtimestamp(moment, timezone.utc)
    return f"{moment} ({date:%Y-%m-%d %H:%M} UTC, if in seconds)"


_SECONDS = (10**8, 10**10)
"""Seconds since 1970 that times of data are among, from 1973 to 2286; and milliseconds are not."""


def moments_of(histories: Histories, valid_share: float, test_share: float) -> ByTime:
    """Return the split where about these shares of all events, the latest, are for validation and test."""
    for name, share in (("valid_share", valid_share), ("test_share", test_share)):
        check_number(name, share, float, PROPER_FRACTION)
    if not valid_share + test_share < 1:
        raise ValueError(
            f"valid_share + test_share must be below 1, got {valid_share} + {test_share}"
        )
    times = _times(histories)
    places = [
        min(math.ceil(len(times) * (1 - share)), len(times) - 1)
        for share in (valid_share + test_share, test_share)
    ]
    valid_from, test_from = np.partition(times, places)[places].tolist()
    if test_share == 0:  # after every event
        test_from = int(times.max()) + 1
    return ByTime(valid_from if valid_share or test_share else test_from, test_from)


def check_by_time(histories: Histories, split: ByTime) -> None:
    """Raise a ValueError if histories cannot be split so: their times fall, or no event is for training."""
    times = _times(histories)
    falls = np.diff(times, prepend=times[:1]) < 0
    starts = histories.offsets[:-1]
    falls[starts[starts < len(times)]] = False
    if falls.any():
        row = np.searchsorted(histories.offsets, int(falls.argmax()), side="right") - 1
        raise ValueError(
            f"times must rise from each event to the next, those of user {histories.users[row]} fall"
        )
    if split.valid_from > split.test_from:
        raise ValueError(
            f"valid_from must not be after test_from = {split.test_from}, got {split.valid_from}"
        )
    if not (times < split.valid_from).any():
        raise ValueError(
            f"valid_from must be after the first event, at {times.min()}, got {split.valid_from}"
        )


def counts_of(histories: Histories, split: ByTime) -> SplitCounts:
    """Count what is in the parts."""
    train, test = split.ends(histories)
    lengths = np.diff(histories.offsets)
    is_training = _times(histories) < split.valid_from
    items = histories.items
    return SplitCounts(
        split.valid_from,
        split.test_from,
        train_events=int(train.sum()),
        valid_events=int((test - train).sum()),
        test_events=int((lengths - test).sum()),
        valid_users=int(np.count_nonzero((train > 0) & (test > train))),
        test_users=int(np.count_nonzero((train > 0) & (lengths > test))),
        new_users=int(np.count_nonzero((train == 0) & (lengths > 0))),
        new_items=len(np.setdiff1d(items[~is_training], items[is_training])),
    )


def _num_before(histories: Histories, moment: int) -> IntArray:
    """(R,) number of events of each row before a moment."""
    count: IntArray = np.append(0, np.cumsum(_times(histories) < moment))
    found: IntArray = count[histories.offsets[1:]] - count[histories.offsets[:-1]]
    return found


def _times(histories: Histories) -> IntArray:
    if histories.times is None:
        raise ValueError(
            "a split by time needs times of events: a third column, the .safetensors of ssept prepare, or "
            "the timestamp of Interactions"
        )
    return histories.times
