"""The sampler of training batches: users at random, their last events, and negative items."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import IntArray
from ssept_ext.data.packed import PackedBatch
from ssept_ext.sampling.draw import Draw, DrawSettings, NativeSource, NumPySource, sampling_table
from ssept_ext.sampling.negatives import philox_key


class WarpSampler:
    """Endless training batches: the interface and the distribution of recommenders' `WarpSampler`.

    Batch i depends on the keyword arguments, `batch_size`, `maxlen` and i alone, not on `n_workers`,
    and `next_batch` and `next_packed` take from the same stream. `User` is read once: later changes
    to it are not seen. Use it as a context manager, or call `close`, to end the worker threads early.

    Attributes
    ----------
    batch_size, maxlen, seed : as given; with seed=None, the seed that was drawn.
    settings : dict[str, int | float], these three and whatever else batches are a function of, but
        for the histories.
    """

    def __init__(
        self,
        User: Mapping[int, Sequence[int]],
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
    ) -> None:
        """Prepare to draw from `User`.

        Parameters
        ----------
        User : user id to the items of the training history, oldest first
            (`SASRecDataSet.user_train`). Users with fewer than 2 events are never drawn.
        usernum, itemnum : the largest ids; negatives are drawn from 1 to `itemnum`.
        maxlen : length of the padded sequences, in events: the model's `seq_max_len`.
        n_workers : threads of the extension that draw ahead; without it, batches are drawn when asked for.
        seed : any integer from 0; None for a fresh one.
        num_negatives : K, for each event.
        popularity_exponent : negatives are drawn in proportion to their number of events in `User`
            to this power; 0 draws them uniformly.
        window_sampling_prob : probability of training, where a history is longer than `maxlen`, on a
            window that starts anywhere in it instead of on the last events (SSE-PT++, Wu et al. 2020,
            section 3.5).

        Raises
        ------
        ValueError : ids above `usernum` or `itemnum` or below 1, no user with 2 events, a user who
            has seen every item, an argument out of range.
        """
        for name, value in (
            ("batch_size", batch_size),
            ("maxlen", maxlen),
            ("n_workers", n_workers),
            ("num_negatives", num_negatives),
        ):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be an integer from 1, got {value!r}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
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
        self._table = sampling_table(User, usernum, itemnum, popularity_exponent)
        self._num_threads = n_workers
        self._index = 0
        self._source = self._open(0)
        self._closed = False

    def next_batch(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Draw (users (B,), seq, pos, neg (B, maxlen)), int64, left-padded with 0.

        `pos` is the event after each of `seq`, `neg` an item that is not in the user's history,
        (B, maxlen, K) where K > 1. Raises RuntimeError after `close`.
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
        """Draw what `pack(*next_batch())` would hold, on the CPU, without any padded array."""
        draw = self._next()
        return PackedBatch(
            users=torch.from_numpy(draw.users),
            items=torch.from_numpy(draw.items),
            positions=torch.from_numpy(draw.columns),
            cu_seqlens=torch.from_numpy(draw.offsets),
            max_seqlen=draw.longest,
            positives=torch.from_numpy(draw.positives),
            negatives=torch.from_numpy(draw.negatives),
        )

    def sequence_lengths(self) -> IntArray:
        """(R,) length of the sequence of each user who can be drawn; all are drawn as often, window or not."""
        lengths: IntArray = np.minimum(np.diff(self._table.offsets) - 1, self.maxlen)
        return lengths

    @property
    def negative_log_probs(self) -> NDArray[np.float64] | None:
        """(itemnum + 1,) log of the share of negatives that each item has, before a user's own are left out.

        None where negatives are uniform. An item that is never drawn has the smallest share there is,
        and so has the padding.
        """
        if self._table.unseen.weight_through is None:
            return None
        weights = np.diff(self._table.unseen.weight_through, prepend=0).astype(np.float64)
        smallest = weights[weights > 0].min()
        log_probs: NDArray[np.float64] = np.log(np.maximum(weights, smallest) / weights.sum())
        return log_probs

    def tell(self) -> int:
        """Number of the next batch, from 0."""
        return self._index

    def seek(self, index: int) -> None:
        """Go on with batch `index`, in no time wherever that is. Raises RuntimeError after `close`."""
        if index < 0:
            raise ValueError(f"index must be at least 0, got {index}")
        if self._closed:
            raise RuntimeError("this WarpSampler is closed")
        if index != self._index:
            self._source.close()
            self._source, self._index = self._open(index), index

    def close(self) -> None:
        """End the worker threads; the sampler cannot draw any more. Closing twice is fine."""
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
