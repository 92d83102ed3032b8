"""The tensor sizes that a training step is captured for in a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.packed import NegativesPer, PackedBatch

MISFIT_RATES = (1e-4, 1e-8, 0.0)
"""Expected rates of batches that exceed the capacity of the first graph and of its two replacements."""


@dataclass(frozen=True)
class BatchShape:
    """The tensor sizes that a graph is captured for."""

    capacity: int
    """Number of tokens in the captured buffers. Smaller batches have tail padding, see `PackedBatch`."""
    batch_size: int
    """Number of sequences."""
    num_negatives: int
    """Number of negatives per token, sequence or batch."""
    negatives_per: NegativesPer = "event"
    num_item_ids: int = 0
    """Room for distinct items in `PackedBatch.numbers`; 0 for batches without."""
    num_user_ids: int = 0
    has_times: bool = False

    @property
    def num_negative_sets(self) -> int:
        """Rows of the captured `PackedBatch.negatives`."""
        rows = {"event": self.capacity, "sequence": self.batch_size, "batch": 1}
        return rows[self.negatives_per]

    @staticmethod
    def like(
        batch: PackedBatch,
        seq_max_len: int,
        lengths: NDArray[np.int64] | None = None,
        misfit_rate: float = MISFIT_RATES[0],
        table_sizes: Sequence[int] = (),
    ) -> BatchShape:
        """Choose a shape that fits this batch and all but a share `misfit_rate` of the batches like it.

        Lengths of sequences are assumed to be drawn from `lengths`, by default the lengths in this batch, which must be
        on the CPU.
        """
        assert batch.negatives is not None
        if lengths is None:
            lengths = batch.cu_seqlens.diff().long().numpy()
        batch_size = len(batch.users)
        capacity = tokens_for(lengths.clip(max=seq_max_len), batch_size, misfit_rate)
        if misfit_rate == 0:
            capacity = batch_size * seq_max_len
        capacity = -(-max(capacity, len(batch.items)) // 64) * 64
        shape = BatchShape(
            capacity,
            batch_size,
            batch.negatives.shape[1],
            negatives_per=batch.negatives_per,
            has_times=batch.times is not None,
        )
        num_ids = [0, 0]
        if batch.numbers is not None:  # and 0, which is in every list
            num_negatives = shape.num_negative_sets * shape.num_negatives
            most = (capacity * 2 + num_negatives + 1, batch_size + 1)
            # A table that a model has not does not limit its ids.
            limits = (*table_sizes, *most[len(table_sizes) :])
            num_ids = [min(x, y) for x, y in zip(most, limits, strict=True)]
        return replace(shape, num_item_ids=num_ids[0], num_user_ids=num_ids[1])

    def fits(self, batch: PackedBatch) -> bool:
        """Whether the batch can be copied into the captured buffers."""
        assert batch.negatives is not None
        return (
            len(batch.items) <= self.capacity
            and len(batch.users) == self.batch_size
            and batch.negatives.shape[1] == self.num_negatives
            and batch.negatives_per == self.negatives_per
            and (batch.times is not None) == self.has_times
        )


def tokens_for(lengths: NDArray[np.int64], batch_size: int, misfit_rate: float) -> int:
    """Return the number of tokens that a batch exceeds with a probability of at most `misfit_rate`.

    The lengths of its `batch_size` sequences are drawn uniformly from `lengths`, with replacement.

    Examples
    --------
    >>> tokens_for(np.array([1, 2]), batch_size=2, misfit_rate=0.3)  # 2, 3, 3 or 4 tokens, equally likely
    3
    """
    shares = np.bincount(lengths, minlength=1) / max(len(lengths), 1)
    num_sums = batch_size * (len(shares) - 1) + 1
    # The distribution of a sum is the convolution of the distributions of its terms; here to 1e-13.
    sums = np.fft.irfft(np.fft.rfft(shares, num_sums) ** batch_size, num_sums)
    at_least = np.cumsum(sums[::-1])[::-1]
    return int((at_least > misfit_rate).sum()) - 1
