"""One training batch as a pure function of the seed and its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import Histories, IntArray, to_csr, to_offsets
from ssept_ext.sampling.negatives import NegativeTable, negative_table


@dataclass(frozen=True)
class SamplingTable:
    """The R users who can be drawn, their E events, and what they have not seen."""

    users: IntArray
    """(R,) user ids."""
    offsets: IntArray
    """(R + 1,) where the events of each row start."""
    items: IntArray
    """(E,) events, oldest first."""
    unseen: NegativeTable


# Sum of the weights of popularity sampling but for rounding them up: integers, so that drawing is
# exact, in 32 bits.
_TOTAL_WEIGHT = 2**30


def sampling_table(
    histories: Mapping[int, Sequence[int]],
    usernum: int,
    itemnum: int,
    popularity_exponent: float = 0.0,
) -> SamplingTable:
    """Prepare the users with more than one event for `draw_batch`.

    Raises ValueError for no such user, ids out of range, and a user with no item left to draw.
    """
    users, offsets, items = to_csr(histories)
    for name, limit, ids in (("user", usernum, users), ("item", itemnum, items)):
        if ids.size and ids.max() > limit:
            raise ValueError(f"User holds {name} id {ids.max()}, but {name}num is {limit}")
    lengths = np.diff(offsets)
    drawable = lengths > 1
    if not drawable.any():
        raise ValueError(f"none of the {len(users)} users in User has more than one event")

    weights = None
    if popularity_exponent > 0:
        popularity = np.bincount(items, minlength=itemnum + 1) ** popularity_exponent
        popularity[0] = 0
        weights = np.ceil(popularity * (_TOTAL_WEIGHT / popularity.sum())).astype(np.int32)
    drawn = Histories(
        users[drawable], to_offsets(lengths[drawable]), items[np.repeat(drawable, lengths)]
    )
    return SamplingTable(*drawn, unseen=negative_table(drawn, itemnum, weights))


@dataclass(frozen=True)
class DrawSettings:
    """What a stream of batches is a function of, beside its table."""

    key: tuple[int, int]
    """64-bit words, of Philox."""
    batch_size: int
    max_len: int
    num_negatives: int
    window_prob: float


class Draw(NamedTuple):
    """A batch of B sequences with N events in all; sequence b owns `offsets[b]:offsets[b + 1]`."""

    users: IntArray
    """(B,)"""
    offsets: NDArray[np.int32]
    """(B + 1,)"""
    columns: IntArray
    """(N,) place of each event in the left-padded layout."""
    items: IntArray
    """(N,)"""
    positives: IntArray
    """(N,) the event after each."""
    negatives: IntArray
    """(N, K) items not in the user's history."""
    longest: int
    """Events of the longest sequence."""


def draw_batch(table: SamplingTable, settings: DrawSettings, index: int) -> Draw:
    """Draw batch `index`: a pure function of its arguments, the same as in `csrc/sampler`.

    Users are uniform with replacement. Each gives its last `max_len` events that have a successor,
    or, with `window_prob` and where it has more, a window of them anywhere, and for each event
    negatives from those not in the user's history. The random numbers are doubles in [0, 1) of
    Philox4x64-10 from counter (0, index, 0, 0): B for users, with windows B to choose whether and B
    to choose where, then N·K for negatives.
    """
    size, max_len = settings.batch_size, settings.max_len
    key = np.array(settings.key, np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=[0, index, 0, 0]))

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

    row = np.repeat(rows, lengths)[:, None]
    negatives = table.unseen.at(row, rng.random((len(token), settings.num_negatives)))
    return Draw(
        users=table.users[rows],
        offsets=offsets.astype(np.int32),
        columns=token + np.repeat(max_len - offsets[1:], lengths),
        items=table.items[event],
        positives=table.items[event + 1],
        negatives=negatives,
        longest=int(lengths.max()),
    )


class NumPySource:
    """Draws batches when they are asked for, where the extension is missing."""

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
    """Draws batches ahead, on threads of the extension."""

    def __init__(
        self, table: SamplingTable, settings: DrawSettings, first_batch: int, num_threads: int
    ) -> None:
        assert _extension.native is not None
        self._sampler = _extension.native.PrefetchingSampler(
            users=table.users,
            offsets=table.offsets,
            items=table.items,
            **table.unseen.native_arguments(),
            **{f.name: getattr(settings, f.name) for f in fields(settings)},
            first_batch=first_batch,
            num_threads=num_threads,
        )

    def next(self) -> Draw:
        return Draw(*self._sampler.next())

    def close(self) -> None:
        self._sampler.close()
