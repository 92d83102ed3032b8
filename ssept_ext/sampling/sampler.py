"""The sampler of training batches: random users, their last events, and negative items."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.packed import PackedBatch
from ssept_ext.sampling.draw import Draw, DrawSettings, NativeSource, NumPySource, sampling_table
from ssept_ext.sampling.negatives import philox_key
from ssept_ext.utils.checks import check_at_least


class WarpSampler:
    """An endless stream of training batches, with the interface and distribution of recommenders' `WarpSampler`.

    Batch number i depends on the histories, the keyword arguments, `batch_size`, `maxlen` and i, but
    not on `n_workers`. `next_batch` and `next_packed` take from the same stream. `User` is read once,
    so later changes to it have no effect. Use the sampler as a context manager, or call `close`, to end the worker
    threads early.

    Attributes
    ----------
    batch_size, maxlen, seed
        As given; if the given seed was None, the seed that was drawn.
    settings
        dict[str, int | float], these three and all other arguments that the batches depend on.

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
        popularity_exponent: float = 0.0,
        window_sampling_prob: float = 0.0,
        needs_negatives: bool = True,
    ) -> None:
        """Prepare to draw from `User`.

        Parameters
        ----------
        User
            The training histories, oldest event first: user id to item ids
            (`SASRecDataSet.user_train`), or arrays (`SASRecDataSet.histories("train")`), which are faster
            and may be shared with the sampler. Users with fewer than 2 events are never drawn.
        usernum, itemnum
            The largest ids; negatives are drawn from items 1 to `itemnum`.
        batch_size
            Sequences in a batch.
        maxlen
            Length of the padded sequences, in events: the model's `seq_max_len`.
        n_workers
            Number of threads that draw batches ahead. Without the compiled extension, batches are drawn
            when they are asked for.
        seed
            Any integer from 0; None for a fresh one.
        num_negatives
            Negatives for each event, K.
        popularity_exponent
            Negatives are drawn in proportion to their number of events in `User` to this power; 0
            draws them uniformly.
        window_sampling_prob
            Where a history is longer than `maxlen`: probability of training on a window that starts
            anywhere in it instead of on the last events (SSE-PT++, Wu et al. 2020, section 3.5).
        needs_negatives
            Whether negatives must be items outside the user's history. Users who have seen every item are then left
            out, with a warning. False is for `loss="softmax"`, which ignores negatives.

        Raises
        ------
        ValueError
            If an id is below 1 or above `usernum` or `itemnum`, no user has 2 events and an unseen item, or an
            argument is out of range.
        """
        for name, value in (
            ("batch_size", batch_size),
            ("maxlen", maxlen),
            ("n_workers", n_workers),
            ("num_negatives", num_negatives),
        ):
            check_at_least(name, value, 1)
        if seed is not None:
            check_at_least("seed", seed, 0, most=math.inf)
        if not 0 <= popularity_exponent <= 2:
            raise ValueError(f"popularity_exponent must be in [0, 2], got {popularity_exponent}")
        if not 0 <= window_sampling_prob <= 1:
            raise ValueError(f"window_sampling_prob must be in [0, 1], got {window_sampling_prob}")
        self.batch_size = batch_size
        self.maxlen = maxlen
        self.seed = secrets.randbits(63) if seed is None else seed
        self.settings: dict[str, int | float] = {
            "batch_size": batch_size,
            "maxlen": maxlen,
            "seed": self.seed,
            "num_negatives": num_negatives,
            "popularity_exponent": popularity_exponent,
            "window_sampling_prob": window_sampling_prob,
        }
        self._draw_settings = DrawSettings(
            philox_key(self.seed), batch_size, maxlen, num_negatives, window_sampling_prob
        )
        self._table = sampling_table(
            User, usernum, itemnum, popularity_exponent, needs_negatives=needs_negatives
        )
        self._num_threads = n_workers
        self._index = 0
        self._source = self._open(0)
        self._closed = False

    def next_batch(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Draw a batch of left-padded arrays.

        Returns
        -------
        tuple
            `(users, seq, pos, neg)`, all int64: (B,) users, and (B, maxlen) items, the item after each
            of them, and an item that is not in the user's history; `neg` is (B, maxlen, K) if K > 1.
            Padding is 0.

        Raises
        ------
        RuntimeError
            After `close`.
        """
        draw = self._next()
        row = np.repeat(np.arange(self.batch_size), np.diff(draw.offsets))
        seq, pos = np.zeros((2, self.batch_size, self.maxlen), np.int64)
        neg = np.zeros((self.batch_size, self.maxlen, draw.negatives.shape[1]), np.int64)
        seq[row, draw.columns] = draw.items
        pos[row, draw.columns] = draw.positives
        neg[row, draw.columns] = draw.negatives
        return draw.users, seq, pos, neg[..., 0] if neg.shape[2] == 1 else neg

    def next_packed(self) -> PackedBatch:
        """Draw what `pack(*next_batch())` would hold, on the CPU, without making padded arrays.

        Raises
        ------
        RuntimeError
            After `close`.
        """
        draw = self._next()
        return PackedBatch.from_numpy(
            users=draw.users,
            items=draw.items,
            positions=draw.columns,
            cu_seqlens=draw.offsets,
            max_seqlen=draw.longest,
            positives=draw.positives,
            negatives=draw.negatives,
        )

    def sequence_lengths(self) -> IntArray:
        """(R,) length of the sequence of each user who can be drawn; all are drawn as often, window or not."""
        lengths: IntArray = np.minimum(np.diff(self._table.offsets) - 1, self.maxlen)
        return lengths

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
            If `index` is negative.
        RuntimeError
            After `close`.
        """
        check_at_least("index", index, 0)
        if self._closed:
            raise RuntimeError("this WarpSampler is closed")
        if index != self._index:
            self._source.close()
            self._source, self._index = self._open(index), index

    def close(self) -> None:
        """End the worker threads. The sampler cannot draw any more; closing it twice is fine."""
        self._closed = True
        self._source.close()

    def __enter__(self) -> WarpSampler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _next(self) -> Draw:
        if self._closed:
            raise RuntimeError("this WarpSampler is closed")
        draw = self._source.next()
        self._index += 1
        return draw

    def _open(self, first_batch: int) -> NumPySource | NativeSource:
        if _extension.native is None:
            return NumPySource(self._table, self._draw_settings, first_batch)
        return NativeSource(self._table, self._draw_settings, first_batch, self._num_threads)
