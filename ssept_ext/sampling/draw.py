"""One training batch as a pure function of the seed and its number."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import Histories, IntArray, as_histories, to_offsets
from ssept_ext.data.packed import NegativesPer, columns_of
from ssept_ext.data.sse import SSE
from ssept_ext.sampling.negatives import NegativeTable, negative_table
from ssept_ext.utils.philox import Key, philox


@dataclass(frozen=True)
class SamplingTable:
    """The R users who can be drawn, their E events, and the items that they have not seen."""

    users: IntArray
    """(R,) user ids."""
    offsets: IntArray
    """(R + 1,) where the events of each row start."""
    items: IntArray
    """(E,) events, oldest first."""
    times: IntArray | None
    """(E,) when each was; None if batches are to have no times."""
    unseen: NegativeTable


# What the weights of popularity sampling add up to, before each is rounded up to an integer. Integers
# make drawing exact, and this total leaves them room in 32 bits.
_TOTAL_WEIGHT = 2**30


def sampling_table(
    histories: Mapping[int, Sequence[int]] | Histories,
    usernum: int,
    itemnum: int,
    popularity_exponent: float = 0.0,
    needs_negatives: bool = True,
    with_times: bool = False,
) -> SamplingTable:
    """Prepare the users with more than one event for `draw_batch`.

    Users who have seen every item are left out, with a warning that counts them; without `needs_negatives`, they are
    kept, and any item may be a negative of anybody.

    Raises
    ------
    ValueError
        If no user is left, an id is out of range, or there are no times `with_times`.
    """
    given = as_histories(histories)
    if with_times and given.times is None:
        raise ValueError(
            'with_times needs the times of events, which User does not have: pass histories("train") of '
            "a data set with times, not a dict"
        )
    if not with_times:
        given = given._replace(times=None)
    users, offsets, items, _ = given
    for name, limit, ids in (("user", usernum, users), ("item", itemnum, items)):
        if ids.size and ids.max() > limit:
            raise ValueError(f"User holds {name} id {ids.max()}, but {name}num is {limit}")
    drawn = given.only(np.diff(offsets) > 1)
    if not len(drawn.users):
        raise ValueError(f"none of the {len(users)} users in User has more than one event")

    weights = None
    if popularity_exponent > 0:
        popularity = np.bincount(items, minlength=itemnum + 1) ** popularity_exponent
        popularity[0] = 0
        weights = np.ceil(popularity * (_TOTAL_WEIGHT / popularity.sum())).astype(np.int32)
    if not needs_negatives:
        nothing = Histories(drawn.users, np.zeros_like(drawn.offsets), drawn.items[:0])
        return SamplingTable(*drawn, unseen=negative_table(nothing, itemnum, weights))
    unseen = negative_table(drawn, itemnum, weights)
    has_unseen = unseen.unseen_weight > 0
    if num_left_out := np.count_nonzero(~has_unseen):
        reason = "have seen all the items that negatives are drawn from"
        if num_left_out == len(drawn.users):
            raise ValueError(f"all {num_left_out} users with more than one event {reason}")
        warnings.warn(
            f"{num_left_out} of {len(drawn.users)} users are left out of training, because they {reason}",
            stacklevel=3,
        )
        drawn = drawn.only(has_unseen)
        unseen = negative_table(drawn, itemnum, weights)
    return SamplingTable(*drawn, unseen=unseen)


@dataclass(frozen=True)
class DrawSettings:
    """What a stream of batches depends on besides its `SamplingTable`."""

    key: Key
    batch_size: int
    max_len: int
    num_negatives: int
    window_prob: float
    sse: SSE = field(default_factory=SSE)
    numbered: bool = False
    """Whether `Draw.numbers` is wanted."""
    negatives_per: NegativesPer = "event"


class Draw(NamedTuple):
    """A batch of B sequences with N events in total; sequence b has events `offsets[b]:offsets[b + 1]`."""

    users: IntArray
    """(B,)"""
    offsets: NDArray[np.int32]
    """(B + 1,)"""
    columns: IntArray
    """(N,) column of each event in the left-padded layout."""
    items: IntArray
    """(N,)"""
    positives: IntArray
    """(N,) the item after each event, unless SSE replaced it."""
    negatives: IntArray
    """(N, K) items not in the user's history; (B, K) or (1, K) where a sequence or the batch shares them."""
    longest: int
    """Length of the longest sequence."""
    numbers: tuple[IntArray, ...] | None = None
    """The fields of `ssept_ext.data.packed.RowNumbers`, if they are wanted and the compiled extension draws."""
    times: IntArray | None = None
    """(N,) when each event was; None if the table has no times."""
    target_times: IntArray | None = None
    """(N,) when the event after each was, whatever SSE replaced it by; None if the table has no times."""


def draw_batch(table: SamplingTable, settings: DrawSettings, index: int) -> Draw:
    """Draw batch number `index`, a pure function of the arguments that `csrc/sampler` computes as well.

    Users are drawn uniformly with replacement. Each contributes its last `max_len` events that are
    followed by another one. A user with more of them contributes, with probability `window_prob`, a
    window of `max_len` events that starts anywhere. Each event, or each sequence, gets negatives from the items outside
    the user's history; a batch gets them as the first of its users would.

    All random numbers are doubles in [0, 1) of Philox4x64-10, counted from (0, index, 0, 0): first B
    for the users; if `window_prob` > 0, B that decide who gets a window and B for where it starts; then
    K for each set of negatives. SSE has words of its own, see `ssept_ext.data.sse`.
    """
    size, max_len = settings.batch_size, settings.max_len
    rng = np.random.Generator(philox(settings.key, index))

    rows = (rng.random(size) * len(table.users)).astype(np.int64)
    ends = table.offsets[rows + 1] - 1  # the last event is a target only
    lengths = np.minimum(ends - table.offsets[rows], max_len)
    if settings.window_prob > 0:
        spare = ends - table.offsets[rows] - lengths
        moves = rng.random(size) < settings.window_prob
        ends = ends - moves * (rng.random(size) * (spare + 1)).astype(np.int64)
    offsets = to_offsets(lengths)
    token = np.arange(offsets[-1])
    event = token + np.repeat(ends - offsets[1:], lengths)

    owners = {"event": np.repeat(rows, lengths), "sequence": rows, "batch": rows[:1]}
    row = owners[settings.negatives_per][:, None]
    negatives = table.unseen.at(row, rng.random((len(row), settings.num_negatives)))
    draw = Draw(
        users=table.users[rows],
        offsets=offsets.astype(np.int32),
        columns=columns_of(offsets, max_len),
        items=table.items[event],
        positives=table.items[event + 1],
        negatives=negatives,
        longest=int(lengths.max()),
        times=None if table.times is None else table.times[event],
        target_times=None if table.times is None else table.times[event + 1],
    )
    settings.sse.replace_in(
        key=settings.key,
        index=index,
        users=draw.users,
        items=draw.items,
        positives=draw.positives,
        offsets=draw.offsets,
    )
    return draw


class NumPySource:
    """Draws each batch when it is asked for; used without the compiled extension."""

    def __init__(self, table: SamplingTable, settings: DrawSettings, first_batch: int) -> None:
        self._table, self._settings = table, settings
        self._index = first_batch

    def next(self) -> Draw:
        draw = draw_batch(self._table, self._settings, self._index)
        self._index += 1
        return draw

    def close(self) -> None:
        pass


class NativeSource:
    """Draws batches ahead of time, on threads of the compiled extension."""

    def __init__(
        self, table: SamplingTable, settings: DrawSettings, first_batch: int, num_threads: int
    ) -> None:
        assert _extension.native is not None
        self._sampler = _extension.native.PrefetchingSampler(
            users=table.users,
            offsets=table.offsets,
            items=table.items,
            times=table.times,
            unseen=table.unseen.native(),
            **{f.name: getattr(settings, f.name) for f in fields(settings)}
            | {"sse": settings.sse.native()},
            first_batch=first_batch,
            num_threads=num_threads,
        )

    def next(self) -> Draw:
        return Draw(*self._sampler.next())

    def close(self) -> None:
        self._sampler.close()
