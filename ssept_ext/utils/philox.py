"""Random words as a function of a key and their number: NumPy's Philox4x64-10."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int]
"""The two 64-bit words of a Philox key."""


def philox_key(seed: int | None) -> Key:
    """Derive a key from a seed; None takes a random seed."""
    first, second = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    return first, second


def philox(key: Key, index: int = 0, domain: int = 0, block: int = 0) -> np.random.Philox:
    """Return the generator of stream (index, domain), from its block of four words on."""
    return np.random.Philox(key=np.array(key, np.uint64), counter=[block, index, domain, 0])


def words(key: Key, index: int, domain: int, first: int, count: int) -> NDArray[np.uint64]:
    """(count,) words of stream (index, domain), from number `first` on."""
    block, skipped = divmod(first, 4)
    drawn: NDArray[np.uint64] = philox(key, index, domain, block).random_raw(skipped + count)
    return drawn[skipped:]
