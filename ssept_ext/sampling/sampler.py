"""The sampler of training batches: random users, their last events, and negative items."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from secrets import randbits
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import MAX_ID, Histories, IntArray
from ssept_ext.data.packed import NegativesPer, PackedBatch, number_rows
from ssept_ext.data.sse import SSE
from ssept_ext.sampling.draw import Draw, DrawSettings, NativeSource, NumPySource, sampling_table
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.philox import philox_key

MAX_WORKERS = 1024
"""The most threads of one sampler."""
MAX_NEGATIVES = 2**31 - 1
"""The most negatives of a batch if all its sequences were of full length: they take 16 GiB."""


class WarpSampler:
    """An endless stream of training batches, with the interface and distribution of recommenders' `WarpSampler`.

    Batch number i depends on the histories, the keyword arguments, `batch_size`, `maxlen` and i, but
    not on `n_workers`. `next_batch` and `next_packed` take from the same stream. `User` is read once,
    so later changes to it have no effect. Use the sampler as a context manager, or call `close`, to end the worker
    threads early. All methods may be called from several threads at once, but not in a forked child, which has none
    of the worker threads.

    Attributes
    ----------
    batch_size, maxlen, seed
        As given; if the given seed was None, the seed that was drawn.
    settings
        dict[str, int | float | str], these three and the fields of `SamplerOptions`.

    Examples
    --------
    >>> with WarpSampler({1: [4, 2, 3], 2: [3, 1]}, usernum=2, itemnum=4, batch_size=5, seed=0) as sampler:
    ...     users, seq, pos, neg = sampler.next_batch()
    >>> seq.shape
    (5, 10)
    """

    def __init__(
        self,
        User: Mapping[int, Sequence[int]] | Histories,
        usernum: int,
        itemnum: int,
        batch_size: int = 64,
        maxlen: int = 10,
        n_workers: int = 1,
        *,
        seed: int | None = None,
        num_negatives: int = 1,
        negatives_per: NegativesPer = "event",
        popularity_exponent: float = 0.0,
        window_sampling_prob: float = 0.0,
        needs_negatives: bool = True,
        with_times: bool = False,
    ) -> None:
        """Prepare to draw from `User`.

        Parameters
        ----------
        User
            The training histories, oldest event first: user id to item ids (`SASRecDataSet.user_train`), or arrays
            (`SASRecDataSet.histories("train")`), which are faster and may be shared with the sampler. Users with fewer
            than 2 events are never drawn.
        usernum, itemnum
            The largest ids; negatives are drawn from items 1 to `itemnum`.
        batch_size, maxlen
            Sequences in a batch, and their padded length in events: the model's `seq_max_len`.
        n_workers
            Threads that draw batches ahead, up to 1024; without the compiled extension, batches are drawn on demand.
        seed
            Any integer from 0; None for a fresh one.
        num_negatives
            Negatives for each event, K.
        negatives_per
            "sequence" or "batch" draws K negatives for a sequence or a batch, which its events share: many negatives
            then cost little. Those of a batch are drawn from all items, also those that a user has seen. The loss of an
            event leaves out a shared negative that is its positive.
        popularity_exponent
            Negatives are drawn in proportion to their number of events in `User` to this power; uniformly if it is 0.
        window_sampling_prob
            Where a history is longer than `maxlen`: probability of training on a window that starts
            anywhere in it instead of on the last events (SSE-PT++, Wu et al. 2020, section 3.5).
        needs_negatives
            Whether negatives must be items outside the user's history. Users who have seen every item are then left
            out, with a warning. False is for `loss="softmax"`, which ignores negatives.
        with_times
            Whether batches of `next_packed` have the `times` of their events and the `target_times` of the events to
            predict, which models with `time_bias` read. `User` must be arrays with times then. SSE replaces ids only.

        Raises
        ------
        ValueError
            If an id is below 1 or above `usernum` or `itemnum`, no user has 2 events and an unseen item, `User` has no
            times that `with_times` needs, or an argument is out of range; so is a batch of 2**31 events or negatives.
        RuntimeError
            If the system does not start as many threads.
        """
        options = SamplerOptions(
            num_negatives=num_negatives,
            negatives_per=negatives_per,
            popularity_exponent=popularity_exponent,
            window_sampling_prob=window_sampling_prob,
        )
        usernum = check_at_least("usernum", usernum, 1, MAX_ID)
        itemnum = check_at_least("itemnum", itemnum, 1, MAX_ID)
        self.batch_size = check_at_least("batch_size", batch_size, 1)
        self.maxlen = check_at_least("maxlen", maxlen, 1)
        self._num_threads = check_at_least("n_workers", n_workers, 1, MAX_WORKERS)
        sizes = {
            "batch_size": self.batch_size,
            "maxlen": self.maxlen,
            "num_negatives": options.num_negatives,
        }
        of_events = ["batch_size", "maxlen"]
        of_negatives = {"event": of_events, "sequence": ["batch_size"], "batch": []}
        for names in ([*of_negatives[negatives_per], "num_negatives"], of_events):
            factors = [sizes[name] for name in names]
            if math.prod(factors) > MAX_NEGATIVES:
                raise ValueError(
                    f"{' * '.join(names)} must be at most {MAX_NEGATIVES}, got {' * '.join(map(str, factors))}"
                )
        self.seed = randbits(63) if seed is None else check_at_least("seed", seed, 0, math.inf)
        own = {"batch_size": self.batch_size, "maxlen": self.maxlen, "seed": self.seed}
        self.settings: dict[str, int | float | str] = {**own, **asdict(options)}
        key = philox_key(self.seed)
        self._draw_settings = DrawSettings(
            key,
            self.batch_size,
            self.maxlen,
            options.num_negatives,
            options.window_sampling_prob,
            negatives_per=options.negatives_per,
        )
        of_users = needs_negatives and options.negatives_per != "batch"
        self._table = sampling_table(
            User,
            usernum,
            itemnum,
            options.popularity_exponent,
            needs_negatives=of_users,
            with_times=with_times,
        )
        self._itemnum = itemnum
        self._index = 0
        self._source = self._open(0)
        self._closed = False
        self._process = os.getpid()
        self._lock = threading.RLock()

    def next_batch(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Draw a batch of left-padded arrays.

        Returns
        -------
        tuple
            `(users, seq, pos, neg)`, all int64: (B,) users, and (B, maxlen) items, the item after each
            of them, and an item that is not in the user's history; `neg` is (B, maxlen, K) if K > 1.
            Shared negatives are repeated for each event. Padding is 0.

        Raises
        ------
        RuntimeError
            After `close`, or in a forked child.
        """
        draw = self._next()
        row = np.repeat(np.arange(self.batch_size), np.diff(draw.offsets))
        seq, pos = np.zeros((2, self.batch_size, self.maxlen), np.int64)
        neg = np.zeros((self.batch_size, self.maxlen, draw.negatives.shape[1]), np.int64)
        seq[row, draw.columns] = draw.items
        pos[row, draw.columns] = draw.positives
        owner = {"event": np.arange(len(row)), "sequence": row, "batch": np.zeros_like(row)}
        neg[row, draw.columns] = draw.negatives[owner[self._draw_settings.negatives_per]]
        return draw.users, seq, pos, neg[..., 0] if neg.shape[2] == 1 else neg

    def next_packed(self) -> PackedBatch:
        """Draw what `pack(*next_batch())` would hold, on the CPU, without making padded arrays or repeating negatives.

        The batch has times, too, if the sampler was made `with_times`.

        Raises
        ------
        RuntimeError
            After `close`, or in a forked child.
        """
        draw = self._next()
        times = {"times": draw.times, "target_times": draw.target_times}
        batch = PackedBatch.from_numpy(
            users=draw.users,
            items=draw.items,
            positions=draw.columns,
            cu_seqlens=draw.offsets,
            max_seqlen=draw.longest,
            positives=draw.positives,
            negatives=draw.negatives,
            negatives_per=self._draw_settings.negatives_per,
            ids_replaced=self._draw_settings.sse.is_active,
            numbers=draw.numbers,
            **{name: array for name, array in times.items() if array is not None},
        )
        return number_rows(batch) if self._draw_settings.numbered else batch

    def sequence_lengths(self) -> IntArray:
        """(R,) length of the sequence of each user who can be drawn; all are drawn as often, window or not."""
        lengths: IntArray = np.minimum(np.diff(self._table.offsets) - 1, self.maxlen)
        return lengths

    def digest(self) -> str:
        """Return a digest of the histories and items that batches are drawn from, which `settings` does not hold.

        Times are part of it if batches have them.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        table = self._table
        histories = Histories(table.users, table.offsets, table.items, table.times)
        return f"{histories.digest(with_times=True)} and items 1..{self._itemnum}"

    @property
    def negative_log_probs(self) -> NDArray[np.float64] | None:
        """(itemnum + 1,) log probability that a negative is each item, for a user who has seen none of them.

        None if negatives are uniform. Items that are never drawn, and the padding, get the smallest
        probability of any item that is drawn.
        """
        if self._table.unseen.weight_through is None:
            return None
        weights = np.diff(self._table.unseen.weight_through, prepend=0).astype(np.float64)
        smallest = weights[weights > 0].min()
        log_probs: NDArray[np.float64] = np.log(np.maximum(weights, smallest) / weights.sum())
        return log_probs

    def tell(self) -> int:
        """Return the number of the next batch, counted from 0."""
        return self._index

    def seek(self, index: int) -> None:
        """Continue with batch number `index`; the cost does not depend on it.

        Raises
        ------
        ValueError
            If `index` is not an integer from 0 to 2**63 - 1.
        RuntimeError
            After `close`, or in a forked child.
        """
        index = check_at_least("index", index, 0)
        with self._in_use():
            if index != self._index:
                self._reopen(index)

    @contextmanager
    def replacing(self, sse: SSE) -> Iterator[None]:
        """Until the end of the context, replace ids of the batches at random, as `train_model` asks for.

        What is replaced in batch i depends on `seed` and i alone. The worker threads do it.

        Raises
        ------
        RuntimeError
            After `close`, or in a forked child.
        """
        with self._drawing(sse=sse):
            yield

    @contextmanager
    def numbering_rows(self) -> Iterator[None]:
        """Until the end of the context, give packed batches their `numbers`. The worker threads find them.

        Raises
        ------
        RuntimeError
            After `close`, or in a forked child.
        """
        with self._drawing(numbered=True):
            yield

    @contextmanager
    def _drawing(self, **changes: Any) -> Iterator[None]:
        """Until the end of the context, draw with other settings."""
        before = {name: getattr(self._draw_settings, name) for name in changes}
        self._change_drawing(changes)
        try:
            yield
        finally:
            if not self._closed:
                self._change_drawing(before)

    def _change_drawing(self, settings: Mapping[str, Any]) -> None:
        with self._in_use():
            self._draw_settings = replace(self._draw_settings, **settings)
            self._reopen(self._index)

    def _reopen(self, index: int) -> None:
        source = self._open(index)
        self._source.close()
        self._source, self._index = source, index

    def close(self) -> None:
        """End the worker threads. The sampler cannot draw any more; closing it twice is fine.

        In a forked child this does nothing.
        """
        if os.getpid() == self._process:
            with self._lock:
                self._closed = True
                self._source.close()

    def __enter__(self) -> WarpSampler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _next(self) -> Draw:
        with self._in_use():
            draw = self._source.next()
            self._index += 1
            return draw

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Make other threads wait; a RuntimeError where the sampler cannot be used."""
        if os.getpid() != self._process:  # the lock may be held by a thread that is not here
            raise RuntimeError(
                "this WarpSampler was made before this process was forked: make one in the child"
            )
        with self._lock:
            if self._closed:
                raise RuntimeError("this WarpSampler is closed")
            yield

    def _open(self, first_batch: int) -> NumPySource | NativeSource:
        if _extension.native is None:
            return NumPySource(self._table, self._draw_settings, first_batch)
        return NativeSource(self._table, self._draw_settings, first_batch, self._num_threads)
