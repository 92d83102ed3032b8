"""The data of the benchmarks: MovieLens-1M and Amazon Games, if they are in a folder next to the checkout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssept_ext import SSEPT, PackedBatch, SASRecDataSet, WarpSampler, pack
from ssept_ext.network.config import SASRECConfig

Name = Literal["ML-1M", "Games"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# A folder that gpu_check.py prepared brings its own.
DATA = ROOT / "data" if (ROOT / "data").is_dir() else SHARED / "data"

BATCH_SIZE = 128
DIM = 50
"""Width of an item's and of a user's vector."""
DROPOUT = 0.2


@dataclass(frozen=True)
class Profile:
    """What a data set looks like to a kernel."""

    file: str
    seq_max_len: int
    num_users: int
    num_items: int
    length_quantiles: tuple[int, ...]
    """Lengths of the histories at 0, 10, ..., 90, 95, 99 and 100 %."""


_LEVELS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_PROFILES: dict[Name, Profile] = {
    "ML-1M": Profile(
        "ml-1m.txt.gz",
        200,
        6040,
        3416,
        (18, 27, 37, 51, 70, 96, 126, 173, 253, 400, 556, 906, 2276),
    ),
    "Games": Profile(
        "games.txt.gz", 50, 31013, 23715, (1, 5, 5, 5, 6, 6, 7, 8, 11, 15, 22, 50, 860)
    ),
}
_TINY = Profile("", 16, 40, 60, (4, 4, 5, 5, 6, 6, 7, 8, 11, 15, 18, 20, 22))


@dataclass(frozen=True)
class Workload:
    name: str
    seq_max_len: int
    dataset: SASRecDataSet
    source: str
    """Whether the histories are real."""

    def sampler(self) -> WarpSampler:
        data = self.dataset
        return WarpSampler(
            data.histories("train"),
            data.usernum,
            data.itemnum,
            BATCH_SIZE,
            self.seq_max_len,
            seed=0,
        )

    def batch(self, device: torch.device) -> Batch:
        """One batch of `WarpSampler`, the same each time."""
        with self.sampler() as sampler:
            users, seq, pos, neg = (torch.from_numpy(x).to(device) for x in sampler.next_batch())
        return Batch(users[:, None], seq, pos, neg, pack(users, seq, pos, neg))

    def model(self, **arguments: object) -> SSEPT:
        """SSE-PT as in DESIGN's targets: two blocks, one head, item and user vectors of `DIM`."""
        return SSEPT(
            item_num=self.dataset.itemnum,
            user_num=self.dataset.usernum,
            seq_max_len=self.seq_max_len,
            embedding_dim=DIM,
            conv_dims=[2 * DIM, 2 * DIM],
            dropout_rate=DROPOUT,
            **arguments,
        )

    def describe(self, batch: Batch) -> str:
        return (
            f"{self.name}, T={self.seq_max_len}, d={DIM}+{DIM}, batch {BATCH_SIZE}, {self.source}; "
            f"{batch.packed.items.numel() / batch.seq.numel():.0%} of the positions are tokens"
        )


@dataclass(frozen=True)
class Batch:
    """The same events padded and packed."""

    users: Tensor
    """(B, 1)"""
    seq: Tensor
    """(B, T)"""
    pos: Tensor
    """(B, T)"""
    neg: Tensor
    """(B, T)"""
    packed: PackedBatch

    @property
    def lengths(self) -> Tensor:
        """(B,)"""
        return self.packed.cu_seqlens.diff()


@cache
def load(name: Name, quick: bool) -> Workload:
    """The data set, or synthetic histories with its distribution of lengths; tiny ones if `quick`."""
    profile = _TINY if quick else _PROFILES[name]
    path = DATA / profile.file
    if path.is_file():
        return Workload(name, profile.seq_max_len, SASRecDataSet(path), "real histories")
    source = "tiny synthetic histories" if quick else "synthetic histories of the same lengths"
    return Workload(name, profile.seq_max_len, SASRecDataSet(histories=_histories(profile)), source)


def attention_flops(lengths: Tensor, width: int) -> int:
    """Of both products of causal attention over sequences of these lengths, forward."""
    seen = int((lengths.long() * (lengths.long() + 1)).sum()) // 2
    return 2 * 2 * seen * width


def encoder_flops(lengths: Tensor, config: SASRECConfig, last_only: bool = False) -> int:
    """Of all matrix products of a forward pass over the real tokens.

    With `last_only` the last block has one query a sequence, as in evaluation.
    """
    width, inner = config.hidden_size, config.conv_dims[0]

    def dense(rows: int, num_layers: int, columns: int) -> int:
        return 2 * rows * num_layers * width * columns

    num_tokens = int(lengths.sum())
    keys_and_values = dense(num_tokens, 2, width)
    block = keys_and_values + dense(num_tokens, 1, width) + dense(num_tokens, 2, inner)
    block += attention_flops(lengths, width)
    if not last_only:
        return config.num_blocks * block
    last = keys_and_values + dense(len(lengths), 1, width) + dense(len(lengths), 2, inner)
    last += 2 * 2 * num_tokens * width
    return (config.num_blocks - 1) * block + last


def _histories(profile: Profile) -> dict[int, list[int]]:
    """Lengths by the profile's quantiles, items by a skewed popularity, without order or taste."""
    rng = np.random.default_rng(0)
    level = rng.random(profile.num_users)
    lengths = np.interp(level, _LEVELS, profile.length_quantiles).astype(int)
    return {
        user: (1 + profile.num_items * rng.random(length) ** 2).astype(int).tolist()
        for user, length in enumerate(lengths.tolist(), 1)
    }
