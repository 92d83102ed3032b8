"""Stochastic shared embeddings: ids replaced at random while training (Wu et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssept_ext.data.packed import BatchPart, PackedBatch
from ssept_ext.ops.reference import philox4x32_10

# Philox sites of their own: those of dropout count up from 0.
_TOKEN_SITE, _USER_SITE = 0xFFFFFFFF, 0xFFFFFFFE
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class SSE:
    """With what probability an id is *replaced*, by one drawn uniformly from its table.

    The flags of the authors' code are probabilities of *keeping*: `--threshold_user 0.08
    --threshold_item 0.9` is `user_prob=0.92, item_prob=0.1, joint=True`.
    """

    user_prob: float = 0.0
    """Of a sequence's user, both as input and in scoring."""
    item_prob: float = 0.0
    """Of an input item; with `joint`, of an input item and its target together."""
    target_prob: float = 0.0
    """Of a positive target; 0 with `joint`."""
    joint: bool = False
    """The habit of the authors' sampler: an input and its target are replaced together, by two independent items,
    and a replaced input is also what the event before it has as its target, unless that was replaced itself."""

    def __post_init__(self) -> None:
        for name in ("user_prob", "item_prob", "target_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"sse_{name} must be in [0, 1], got {getattr(self, name)}")
        if self.joint and self.target_prob > 0:
            raise ValueError(
                f"sse_target_prob must be 0 with sse_joint, where sse_item_prob replaces targets too, "
                f"got {self.target_prob}"
            )

    @property
    def is_active(self) -> bool:
        """Whether anything is ever replaced."""
        return max(self.user_prob, self.item_prob, self.target_prob) > 0


def replace_ids(
    batch: PackedBatch, sse: SSE, user_num: int, item_num: int, seed: Tensor
) -> PackedBatch:
    """Replace users, items and positives of a batch: a pure function of the arguments, without a stream.

    Token n takes the words w of Philox4x32-10 under key `seed` at counter (n, 0, 0, site): its input
    is replaced where `w0 < item_prob * 2**32`, by item `1 + (w1 * item_num >> 32)`; its target where
    `w2 < target_prob * 2**32`, by `1 + (w3 * item_num >> 32)`, or, with `joint`, together with the
    input, by `1 + (w2 * item_num >> 32)`. Users take w0 and w1 at a site of their own. Ids of 0 ("no
    user", "no target") and negatives stay. Never waits for the device.

    Parameters
    ----------
    batch
        With positives, on any device; a `BatchPart` counts n in the whole batch, so that replacing is
        the same however many processes share it.
    user_num, item_num
        Ids are drawn from 1 to these.
    seed
        (1,) int64, on the batch's device.
    """
    users, items, positives = batch.users, batch.items, batch.positives
    if positives is None:
        raise ValueError("batch must have positives")
    first_sequence, first_token = 0, 0
    if isinstance(batch, BatchPart):
        first_sequence, first_token = batch.first_sequence, batch.first_token
    if sse.user_prob > 0:
        words = _words(first_sequence, len(users), seed, _USER_SITE)
        hit = _below(words[0], sse.user_prob) & (users != 0)
        users = torch.where(hit, _scale(words[1], user_num), users)
    if sse.item_prob > 0 or sse.target_prob > 0:
        words = _words(first_token, len(items), seed, _TOKEN_SITE)
        hit = _below(words[0], sse.item_prob)
        items = torch.where(hit, _scale(words[1], item_num), items)
        if sse.joint:
            followed = hit.roll(-1) & ~_is_last(batch)
            target = torch.where(followed, items.roll(-1), positives)
            target = torch.where(hit, _scale(words[2], item_num), target)
        else:
            hit = _below(words[2], sse.target_prob)
            target = torch.where(hit, _scale(words[3], item_num), positives)
        positives = torch.where(positives != 0, target, 0)
    return replace(batch, users=users, items=items, positives=positives)


def _words(
    first: int, count: int, seed: Tensor, site: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = torch.arange(first, first + count, device=seed.device)
    zero = torch.zeros_like(rows)
    key = (seed & _MASK32, (seed >> 32) & _MASK32)
    return philox4x32_10((rows, zero, zero, torch.full_like(rows, site)), key)


def _below(word: Tensor, probability: float) -> Tensor:
    return word < int(probability * 2**32)


def _scale(word: Tensor, largest: int) -> Tensor:
    """Turn 32 random bits into an id from 1 to `largest`, which is below 2**31."""
    return 1 + (word * largest >> 32)


def _is_last(batch: PackedBatch) -> Tensor:
    """(N,) whether a token is the last of its sequence; whatever for spare capacity."""
    starts = torch.zeros(len(batch.items) + 1, dtype=torch.bool, device=batch.items.device)
    starts[batch.cu_seqlens.long()] = True
    return starts[1:]
