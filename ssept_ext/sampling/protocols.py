"""What training asks of a sampler. `WarpSampler` has all of it; only `next_batch` is required."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssept_ext.data.packed import PackedBatch
from ssept_ext.data.sse import SSE


class Sampler(Protocol):
    """A sampler of padded batches, as recommenders' is."""

    def next_batch(self) -> Iterable[ArrayLike]:
        """Users (B,), and input, positive and negative items (B, T), left-padded with 0."""


@runtime_checkable
class PackingSampler(Protocol):
    """A sampler that yields packed batches directly."""

    maxlen: int
    """Columns of the layout that the batch's `positions` refer to."""

    def next_packed(self) -> PackedBatch:
        """A batch on the CPU, with positives and negatives."""


@runtime_checkable
class SeekableSampler(Protocol):
    """A sampler whose position can be saved and restored, which resuming a training needs."""

    settings: dict[str, int | float | str]
    """What batches depend on and a resumed training must share, except the histories."""

    def tell(self) -> int:
        """Number of the next batch."""

    def seek(self, index: int) -> None:
        """Continue with batch `index`."""


@runtime_checkable
class DigestingSampler(Protocol):
    """A sampler that can tell which histories it draws from."""

    def digest(self) -> str:
        """Return a digest of the histories that batches are drawn from."""


@runtime_checkable
class LengthKnowingSampler(Protocol):
    """A sampler that knows the distribution of its sequences' lengths, by which a CUDA graph is sized."""

    def sequence_lengths(self) -> NDArray[np.int64]:
        """Lengths of the sequences, which are drawn independently, each equally often."""


@runtime_checkable
class ReplacingSampler(Protocol):
    """A sampler that can apply SSE to its batches itself."""

    def replacing(self, sse: SSE) -> AbstractContextManager[None]:
        """Replace ids as `sse` says until the end of the context; batches then have `ids_replaced`."""


@runtime_checkable
class NumberingSampler(Protocol):
    """A sampler that can find the rows of tables that its batches read."""

    def numbering_rows(self) -> AbstractContextManager[None]:
        """Give batches their `numbers` until the end of the context."""
