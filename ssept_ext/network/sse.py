"""Stochastic shared embeddings: replace ids at random in training (Wu et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssept_ext.data.packed import BatchPart, PackedBatch
from ssept_ext.ops.reference import philox4x32_10

# Dropout sites count up from 0, so these never collide with them.
_TOKEN_SITE, _USER_SITE = 0xFFFFFFFF, 0xFFFFFFFE
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class SSE:
    """Probabilities of *replacing* an id by one drawn uniformly from its table.

    The flags of the authors' code are probabilities of *keeping* an id: `--threshold_user 0.08
    --threshold_item 0.9` is `user_prob=0.92, item_prob=0.1, joint=True`.

    Examples
    --------
    >>> SSE(user_prob=0.92, item_prob=0.1, joint=True).is_active
    True
    """

    user_prob: float = 0.0
    """Probability of replacing the user of a sequence, both as input and in scoring."""
    item_prob: float = 0.0
    """Probability of replacing an input item or, with `joint`, an input item and its target together."""
    target_prob: float = 0.0
    """Probability of replacing the item to predict; must be 0 with `joint`."""
    joint: bool = False
    """Whether to replace as the authors' sampler does: an input and its target together, by two independently drawn
    items. A replaced input also becomes the target of the event before it, unless that target was itself replaced."""

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
        """Whether any probability is above 0."""
        return max(self.user_prob, self.item_prob, self.target_prob) > 0


def replace_ids(
    batch: PackedBatch, sse: SSE, user_num: int, item_num: int, seed: Tensor
) -> PackedBatch:
    """Replace users, items and positives of a batch at random, as a pure function of the arguments.

    Token n uses the words w0 to w3 of Philox4x32-10 with key `seed` at counter (n, 0, 0, site). If
    `w0 < item_prob * 2**32`, its input becomes item `1 + (w1 * item_num >> 32)`. If `w2 < target_prob * 2**32`, its
    target becomes `1 + (w3 * item_num >> 32)`; with `joint`, the target is replaced whenever the input is, by
    `1 + (w2 * item_num >> 32)`. Sequences use w0 and w1 in the same way for their users, at another site. Ids of 0
    ("no user", "no target") and negatives are never replaced. Never waits for the device.

    Parameters
    ----------
    batch
        A batch with positives, on any device. In a `BatchPart`, n counts from the start of the whole batch, so the
        replaced ids do not depend on the number of processes.
    user_num, item_num
        The largest ids to draw.
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
    """Turn 32 random bits into an id from 1 to `largest`, which must be below 2**31."""
    return 1 + (word * largest >> 32)


def _is_last(batch: PackedBatch) -> Tensor:
    """(N,) bool: whether a token is the last of its sequence; undefined in the tail padding."""
    starts = torch.zeros(len(batch.items) + 1, dtype=torch.bool, device=batch.items.device)
    # Not `starts[...] = True`, which copies the True to a GPU, and waits for it.
    return starts.index_fill_(0, batch.cu_seqlens.long(), True)[1:]
