"""Batches without padding: the real tokens of all sequences, one after the other.

Everything that makes a `PackedBatch` out of another form is here. Only this file, and the sampler in `csrc/sampler`,
need to know that the newest event of a sequence is in the last column, `seq_max_len - 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssept_ext.data.histories import Histories, IntArray, to_offsets

NegativesPer = Literal["event", "sequence", "batch"]
"""What has K negatives of its own: each token, each sequence, or the batch."""

TENSORS = (
    "users",
    "items",
    "positions",
    "cu_seqlens",
    "times",
    "target_times",
    "positives",
    "negatives",
)
"""The fields of a `PackedBatch` that are tensors."""


@dataclass(frozen=True)
class RowNumbers:
    """The rows of the embedding tables that a batch reads, and the batch's ids as numbers of these rows.

    A training step then gathers these rows into small tables, and its cost does not depend on the size of the whole.
    """

    item_ids: Tensor
    """(M,) int64: 0 and the distinct items, positives and negatives, ascending. Zeros after them are spare capacity."""
    user_ids: Tensor
    """(V,) int64: 0 and the distinct users, ascending; then spare capacity."""
    users: Tensor
    """(B,) int64 index of each user in `user_ids`."""
    items: Tensor
    """(N,) int64 index of each item in `item_ids`; `positives` and `negatives` likewise."""
    positives: Tensor
    """(N,)"""
    negatives: Tensor
    """As many as the batch has."""

    def to(self, device: torch.device | str) -> RowNumbers:
        """Copy every tensor to `device`."""
        return RowNumbers(**{name: x.to(device) for name, x in vars(self).items()})


class Tables(NamedTuple):
    """The tables that the ids of a batch are rows of."""

    items: Tensor
    """(M, Di) vectors by which items are read and, unless there are `outputs`, scored."""
    users: Tensor | None = None
    """(V, Du) vectors of users, if there are any."""
    outputs: Tensor | None = None
    """(M, Di) vectors by which items are scored instead."""

    @property
    def scored(self) -> Tensor:
        """(M, Di) vectors by which items are scored."""
        return self.items if self.outputs is None else self.outputs


@dataclass(frozen=True)
class PackedBatch:
    """B sequences with N real tokens in total, in the layout of `flash_attn_varlen_func`.

    Sequence b has the tokens `cu_seqlens[b]` to `cu_seqlens[b + 1] - 1`, oldest first. Tokens from
    `cu_seqlens[B]` on, if any, are spare capacity: they belong to no sequence and are never read.

    Examples
    --------
    >>> batch = pack(torch.tensor([7, 8]), torch.tensor([[0, 3, 5], [0, 0, 4]]))
    >>> batch.items, batch.positions, batch.cu_seqlens
    (tensor([3, 5, 4]), tensor([1, 2, 2]), tensor([0, 2, 3], dtype=torch.int32))
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
    times: Tensor | None = None
    """(N,) int64 time of each token's event, which a model with `time_bias` needs."""
    target_times: Tensor | None = None
    """(N,) int64 time of the event after each token, the one to predict; given with `times`."""
    positives: Tensor | None = None
    """(N,) int64 next item of each token, 0 where it has none."""
    negatives: Tensor | None = None
    """(N, K) int64 sampled items of each token; as `negatives_per` says, (B, K) of each sequence or (1, K) of all."""
    negatives_per: NegativesPer = "event"
    """What the rows of `negatives` belong to."""
    ids_replaced: bool = False
    """Whether SSE has been applied, see `ssept_ext.data.sse`: a model does not apply it again."""
    numbers: RowNumbers | None = None
    """The rows that this batch reads, if they were asked for."""
    tables: Tables | None = None
    """Vectors of the rows in `numbers`, which a model then uses instead of its own tables."""

    @classmethod
    def from_numpy(
        cls,
        *,
        max_seqlen: int,
        ids_replaced: bool = False,
        negatives_per: NegativesPer = "event",
        numbers: Sequence[NDArray[Any]] | None = None,
        **arrays: NDArray[Any],
    ) -> PackedBatch:
        """Make a batch on the CPU that shares the memory of NumPy arrays, named as the fields."""
        return cls(
            max_seqlen=max_seqlen,
            ids_replaced=ids_replaced,
            negatives_per=negatives_per,
            numbers=None if numbers is None else RowNumbers(*map(torch.from_numpy, numbers)),
            **{name: torch.from_numpy(array) for name, array in arrays.items()},  # type: ignore[arg-type]
        )

    def targets(self, needs_negatives: bool = True) -> tuple[Tensor, Tensor]:
        """Return positives and negatives; a ValueError if there are none."""
        if self.positives is None or (needs_negatives and self.negatives is None):
            raise ValueError(
                f"batch must have positives{' and negatives' if needs_negatives else ''}"
            )
        return self.positives, cast("Tensor", self.negatives)

    def negatives_of(self, sequences: slice, tokens: slice) -> slice:
        """Return which rows of `negatives` these sequences use, given their tokens too."""
        return {"event": tokens, "sequence": sequences, "batch": slice(None)}[self.negatives_per]

    def negatives_of_tokens(self) -> Tensor:
        """(N, K) negatives of each token, which tokens may share; 0 for spare capacity that has no sequence."""
        _, negatives = self.targets()
        if self.negatives_per == "event":
            return negatives
        if self.negatives_per == "batch":
            return negatives.expand(len(self.items), -1)
        token = torch.arange(len(self.items), device=negatives.device, dtype=torch.int32)
        sequence = torch.searchsorted(self.cu_seqlens[1:].contiguous(), token, right=True)
        return F.pad(negatives, (0, 0, 0, 1))[sequence]

    def look_up(self, whole: Tables) -> tuple[Tables, PackedBatch]:
        """Return the tables to use, those of the batch or else whole ones, and the batch with their rows as its ids."""
        if self.tables is None:
            return whole, self
        assert self.numbers is not None
        rows = replace(
            self,
            users=self.numbers.users,
            items=self.numbers.items,
            positives=self.numbers.positives,
            negatives=self.numbers.negatives,
        )
        return self.tables, rows

    def to(self, device: torch.device | str) -> PackedBatch:
        """Copy every tensor to `device`."""
        moved: dict[str, Any] = {
            name: x.to(device) for name in TENSORS if (x := getattr(self, name)) is not None
        }
        if self.numbers is not None:
            moved["numbers"] = self.numbers.to(device)
        return replace(self, **moved)


@dataclass(frozen=True)
class BatchPart(PackedBatch):
    """Consecutive sequences of a batch that several processes share: see `ssept_ext.distributed`."""

    process: int = 0
    """Number of the process that has this part; each process uses a dropout seed of its own."""
    first_sequence: int = 0
    """Number of the first sequence, counted in the whole batch."""
    first_token: int = 0
    """Number of the first token, counted in the whole batch."""
    target_share: float = 1.0
    """Share of the whole batch's targets that are in this part."""


def pack(
    users: Tensor,
    input_seq: Tensor,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
) -> PackedBatch:
    """Drop the padding of a left-padded batch.

    Parameters
    ----------
    users
        (B,) or (B, 1) int64.
    input_seq
        (B, T) int64, 0 is padding. Zeros between events are dropped too; a token's position is
        its column, as in recommenders.
    positive
        (B, T) int64, the next item of every column.
    negative
        (B, T) or (B, T, K) int64, sampled items of every column.

    Examples
    --------
    >>> pack(torch.tensor([7]), torch.tensor([[0, 3, 5]]), positive=torch.tensor([[0, 5, 9]])).positives
    tensor([5, 9])
    """
    real = input_seq != 0
    lengths = real.sum(1)
    return PackedBatch(
        users=users.reshape(-1),
        items=input_seq[real],
        positions=real.nonzero()[:, 1],
        cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)).int(),
        max_seqlen=int(lengths.max()) if lengths.numel() else 0,
        positives=None if positive is None else positive[real],
        negatives=None
        if negative is None
        else negative[real].reshape(
            int(lengths.sum()), 1 if negative.dim() == 2 else negative.shape[2]
        ),
    )


def pack_statically(users: Tensor, input_seq: Tensor) -> PackedBatch:
    """As `pack`, with shapes that do not depend on values, as `torch.export` needs.

    Real tokens come first, in their order; padding becomes spare capacity after them.
    """
    items = input_seq.flatten()
    real = items != 0
    rank = real.long().cumsum(0)
    token = torch.arange(items.shape[0], device=items.device)  # len() would fix the batch size
    place = torch.where(real, rank - 1, rank[-1] + token - rank)
    order = torch.zeros_like(items).scatter(0, place, token)
    return PackedBatch(
        users=users,
        items=items[order],
        positions=order % input_seq.shape[1],
        cu_seqlens=F.pad((input_seq != 0).sum(1).cumsum(0), (1, 0)).int(),
        max_seqlen=input_seq.shape[1],
    )


def last_events(
    histories: Histories, rows: slice, seq_max_len: int, at: IntArray | None = None
) -> PackedBatch:
    """Pack the newest `seq_max_len` events of some consecutive rows, on the CPU.

    `at`, (R,), is the time at which the next event of each of all rows is asked for; the batch then has times.
    """
    starts, ends = histories.offsets[:-1][rows], histories.offsets[1:][rows]
    lengths = np.minimum(ends - starts, seq_max_len)
    cu_seqlens = to_offsets(lengths)
    event = np.arange(cu_seqlens[-1]) + np.repeat(ends - cu_seqlens[1:], lengths)
    times = {}
    if at is not None:
        assert histories.times is not None
        target_times = np.append(histories.times[1:], 0)[event]
        target_times[cu_seqlens[1:][lengths > 0] - 1] = at[rows][lengths > 0]
        times = {"times": histories.times[event], "target_times": target_times}
    return PackedBatch.from_numpy(
        users=histories.users[rows],
        items=histories.items[event],
        positions=columns_of(cu_seqlens, seq_max_len),
        cu_seqlens=cu_seqlens.astype(np.int32),
        max_seqlen=int(lengths.max()),
        **times,
    )


def align(batch: PackedBatch, maxlen: int, seq_max_len: int) -> PackedBatch:
    """Move a batch from sequences of `maxlen` columns to sequences of `seq_max_len`.

    The newest event stays in the last column, so a shorter layout drops the oldest events.
    """
    if maxlen == seq_max_len:
        return batch
    positions = batch.positions + (seq_max_len - maxlen)
    keep = positions >= 0
    num_kept = F.pad(keep.cumsum(0), (1, 0))
    of_tokens = {
        name: x[keep]
        for name in ("items", "times", "target_times", "positives")
        if (x := getattr(batch, name)) is not None
    }
    return replace(
        batch,
        **of_tokens,
        positions=positions[keep],
        cu_seqlens=num_kept[batch.cu_seqlens.long()].int(),
        max_seqlen=min(batch.max_seqlen, seq_max_len),
        negatives=batch.negatives[keep]
        if batch.negatives is not None and batch.negatives_per == "event"
        else batch.negatives,
        numbers=None,
    )


def number_rows(batch: PackedBatch) -> PackedBatch:
    """Find the `numbers` of a batch with positives and negatives, unless it has them.

    `WarpSampler` does so by itself, in its own threads, when `train_model` asks for it.
    """
    if batch.numbers is not None:
        return batch
    assert batch.positives is not None
    assert batch.negatives is not None
    item_ids, *numbers = numbered(batch.items, batch.positives, batch.negatives)
    user_ids, users = numbered(batch.users)
    return replace(batch, numbers=RowNumbers(item_ids, user_ids, users, *numbers))


def round_up_tokens(batch: PackedBatch) -> PackedBatch:
    """Give a batch spare capacity, up to one of 32 numbers of tokens between a power of two and the next.

    Where a kernel is compiled for every new number of rows, as oneDNN's products of bfloat16 matrices are, many batches
    then share one.

    Examples
    --------
    >>> batch = pack(torch.tensor([7]), torch.ones(1, 1001, dtype=torch.int64))
    >>> len(batch.items), len(round_up_tokens(batch).items)
    (1001, 1008)
    """
    count = len(batch.items)
    spare = -count % (1 << max(0, count.bit_length() - 6))
    of_tokens = ["items", "positions", "times", "target_times", "positives"]
    if batch.negatives_per == "event":
        of_tokens.append("negatives")

    def padded(of: PackedBatch | RowNumbers) -> dict[str, Any]:
        named = [(name, getattr(of, name, None)) for name in of_tokens]
        shapes = {name: (0, 0) * (x.dim() - 1) + (0, spare) for name, x in named if x is not None}
        return {name: F.pad(getattr(of, name), shape) for name, shape in shapes.items()}

    if spare == 0:
        return batch
    numbers = batch.numbers
    if numbers is not None:
        numbers = replace(numbers, **padded(numbers))
    return replace(batch, **padded(batch), numbers=numbers)


def numbered(*tensors: Tensor) -> list[Tensor]:
    """Return the distinct ids and 0, ascending, and then, for each tensor, the index of each of its ids among them."""
    flat = torch.cat([tensors[0].new_zeros(1), *(x.flatten() for x in tensors)])
    ids, index = torch.unique(flat, return_inverse=True)
    parts = index[1:].split([x.numel() for x in tensors])
    return [ids, *(part.view(x.shape) for part, x in zip(parts, tensors, strict=True))]


def columns_of(offsets: IntArray, seq_max_len: int) -> IntArray:
    """(N,) column of each event of sequences, of at most `seq_max_len` events, that end in the last column."""
    columns = np.arange(offsets[-1])
    columns += np.repeat(seq_max_len - offsets[1:], np.diff(offsets))
    return columns
