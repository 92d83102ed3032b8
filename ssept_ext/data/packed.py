"""Batches without padding: the real tokens of all sequences in one row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext.data.histories import Histories


@dataclass(frozen=True)
class PackedBatch:
    """B sequences with N real tokens in all, as `flash_attn_varlen_func` lays them out.

    Sequence b owns the tokens `cu_seqlens[b]` to `cu_seqlens[b + 1] - 1`, oldest first. Tokens from
    `cu_seqlens[B]` on, if any, are spare capacity: they belong to no sequence and are never read.
    """

    users: Tensor
    """(B,) int64, 0 for "no user"."""
    items: Tensor
    """(N,) int64 item ids, never 0."""
    positions: Tensor
    """(N,) int64 column of each token in the left-padded layout; the newest is at seq_max_len - 1."""
    cu_seqlens: Tensor
    """(B + 1,) int32 offsets of the sequences, from 0."""
    max_seqlen: int
    """Length of the longest sequence, or an upper bound of it."""
    positives: Tensor | None = None
    """(N,) int64 next item of each token, 0 where it has none."""
    negatives: Tensor | None = None
    """(N, K) int64 sampled items of each token."""

    def to(self, device: torch.device | str) -> PackedBatch:
        """Copy every tensor to `device`."""
        tensors = ("users", "items", "positions", "cu_seqlens", "positives", "negatives")
        moved: dict[str, Any] = {
            name: x.to(device) for name in tensors if (x := getattr(self, name)) is not None
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class BatchPart(PackedBatch):
    """Consecutive sequences of a batch that several processes share: see `ssept_ext.distributed`."""

    process: int = 0
    """Whose part it is; each drops out by a seed of its own."""
    first_sequence: int = 0
    """Number, in the whole batch, of the first sequence."""
    first_token: int = 0
    """Number, in the whole batch, of the first token."""
    target_share: float = 1.0
    """How many of the whole batch's targets are here."""


def pack(
    users: Tensor,
    input_seq: Tensor,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
) -> PackedBatch:
    """Drop the padding of a left-padded batch.

    Parameters
    ----------
    users : (B,) or (B, 1) int64
    input_seq : (B, T) int64, 0 is padding. Zeros between events are dropped too; a token's position is
        its column, as in recommenders.
    positive : (B, T) int64, the next item of every column.
    negative : (B, T) or (B, T, K) int64, sampled items of every column.
    """
    real = input_seq != 0
    lengths = real.sum(1)
    cu_seqlens = torch.zeros(input_seq.shape[0] + 1, dtype=torch.int32, device=input_seq.device)
    cu_seqlens[1:] = lengths.cumsum(0)
    return PackedBatch(
        users=users.reshape(-1),
        items=input_seq[real],
        positions=real.nonzero()[:, 1],
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()) if lengths.numel() else 0,
        positives=None if positive is None else positive[real],
        negatives=None
        if negative is None
        else negative[real].reshape(
            int(lengths.sum()), 1 if negative.dim() == 2 else negative.shape[2]
        ),
    )


def last_events(histories: Histories, rows: slice, seq_max_len: int) -> PackedBatch:
    """Pack the newest `seq_max_len` events of some of the users, on the CPU."""
    starts, ends = histories.offsets[:-1][rows], histories.offsets[1:][rows]
    lengths = np.minimum(ends - starts, seq_max_len)
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    token = np.arange(cu_seqlens[-1])
    event = token + np.repeat(ends - cu_seqlens[1:], lengths)
    return PackedBatch(
        users=torch.from_numpy(histories.users[rows]),
        items=torch.from_numpy(histories.items[event]),
        positions=torch.from_numpy(token + np.repeat(seq_max_len - cu_seqlens[1:], lengths)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
    )


def align(batch: PackedBatch, maxlen: int, seq_max_len: int) -> PackedBatch:
    """Move a batch with targets from a layout of `maxlen` columns to one of `seq_max_len`.

    Both layouts end with the newest event, so events that do not fit are the oldest.
    """
    if maxlen == seq_max_len:
        return batch
    assert batch.positives is not None
    assert batch.negatives is not None
    positions = batch.positions + (seq_max_len - maxlen)
    keep = positions >= 0
    num_kept = F.pad(keep.cumsum(0), (1, 0))
    return PackedBatch(
        users=batch.users,
        items=batch.items[keep],
        positions=positions[keep],
        cu_seqlens=num_kept[batch.cu_seqlens.long()].int(),
        max_seqlen=min(batch.max_seqlen, seq_max_len),
        positives=batch.positives[keep],
        negatives=batch.negatives[keep],
    )
