"""Stochastic shared embeddings: replace ids at random in training (Wu et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext import _extension
from ssept_ext.data.histories import IntArray
from ssept_ext.data.packed import PackedBatch
from ssept_ext.utils.checks import shown
from ssept_ext.utils.philox import Key, philox_key, words

# Streams of random words, of which 0 is the sampler's; the same numbers are in csrc/sampler/sse.cpp.
_USERS, _ITEMS, _TARGETS = 1, 2, 3


@dataclass(frozen=True)
class SSE:
    """Probabilities of *replacing* an id by one drawn uniformly from its table, and the sizes of the tables.

    The flags of the authors' code are probabilities of *keeping* an id: `--threshold_user 0.08
    --threshold_item 0.9` is `user_prob=0.92, item_prob=0.1, joint=True`.

    Examples
    --------
    >>> SSE(user_prob=0.92, item_prob=0.1, joint=True, user_num=6040, item_num=3416).is_active
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
    user_num: int = 0
    """The largest user to draw."""
    item_num: int = 0
    """The largest item to draw."""

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

    def native(self) -> Any:
        """Return this for the compiled extension, or None if it did not load."""
        if _extension.native is None:
            return None
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        probabilities = ("user_prob", "item_prob", "target_prob")
        return _extension.native.SSE(
            **settings | {name: _threshold(settings[name]) for name in probabilities}
        )

    def replace_in(
        self,
        *,
        key: Key,
        index: int = 0,
        users: IntArray,
        items: IntArray,
        positives: IntArray,
        offsets: NDArray[np.int32],
        first_sequence: int = 0,
        first_token: int = 0,
    ) -> None:
        """Replace ids in arrays of a batch in place, a pure function that `csrc/sampler` computes as well.

        All random words w are those of Philox4x64-10 of the streams `ssept_ext.utils.philox.words(key, index, domain)`:
        sequence b uses word b of domain 1, token n word n of domain 2 for its input and of domain 3 for its target. An
        id is replaced if `w >> 32` is below its probability times 2**32, by `1 + ((w mod 2**32) * largest >> 32)`.
        Ids of 0 ("no user", "no target") are never replaced.

        Parameters
        ----------
        key, index
            Of the random words.
        users, items, positives
            (B,), (N,), (N,); tokens from `offsets[B]` on belong to no sequence and stay.
        offsets
            (B + 1,) of the sequences.
        first_sequence, first_token
            The numbers that b and n start from, where the arrays are a part of a batch.
        """
        if self.user_prob > 0:
            w = words(key, index, _USERS, first_sequence, len(users))
            hit = _is_hit(w, self.user_prob) & (users != 0)
            users[hit] = _drawn(w[hit], self.user_num)
        if self.item_prob == 0 and self.target_prob == 0:
            return
        num_tokens = int(offsets[-1])
        items, positives = items[:num_tokens], positives[:num_tokens]
        has_target = positives != 0
        hit = np.zeros(num_tokens, bool)
        if self.item_prob > 0:
            w = words(key, index, _ITEMS, first_token, num_tokens)
            hit = _is_hit(w, self.item_prob)
            items[hit] = _drawn(w[hit], self.item_num)
        if self.joint:
            is_last = np.zeros(num_tokens + 1, bool)
            is_last[offsets] = True
            followed = np.append(hit, False)[1:] & ~is_last[1:]
            followed &= has_target
            positives[followed] = items[1:][followed[:-1]]
        if self.joint or self.target_prob > 0:
            w = words(key, index, _TARGETS, first_token, num_tokens)
            hit = (hit if self.joint else _is_hit(w, self.target_prob)) & has_target
            positives[hit] = _drawn(w[hit], self.item_num)


def replace_ids(batch: PackedBatch, sse: SSE, seed: int) -> PackedBatch:
    """Replace users, items and positives of a batch at random, as a pure function of the arguments.

    The sampler does so by itself, in its own threads, when `train_model` asks for it; this is for any other batch.

    Parameters
    ----------
    batch
        A batch with positives. One on a GPU is copied to the host, and back. In a `BatchPart`, tokens count from the
        start of the whole batch, so the replaced ids do not depend on the number of processes.
    sse
        What to replace.
    seed
        Any int64.

    Raises
    ------
    ValueError
        If the batch has no positives, its offsets do not fit its tokens, or it has `tables`, the rows of its old ids.
    """
    if batch.positives is None:
        raise ValueError("batch must have positives")
    if batch.tables is not None:
        raise ValueError("batch must have its ids replaced before it is given tables of their rows")
    offsets = batch.cu_seqlens.cpu().numpy()
    _check_offsets(offsets, len(batch.users), min(len(batch.items), len(batch.positives)))
    users, items, positives = (
        x.to("cpu", copy=True) for x in (batch.users, batch.items, batch.positives)
    )
    native = sse.native()
    (sse if native is None else native).replace_in(
        key=philox_key(seed % 2**64),
        users=users.numpy(),
        items=items.numpy(),
        positives=positives.numpy(),
        offsets=offsets,
        # of a BatchPart
        first_sequence=getattr(batch, "first_sequence", 0),
        first_token=getattr(batch, "first_token", 0),
    )
    device = batch.items.device
    return replace(
        batch,
        users=users.to(device),
        items=items.to(device),
        positives=positives.to(device),
        ids_replaced=True,
        numbers=None,  # those of the old ids
    )


def _check_offsets(offsets: NDArray[np.int32], num_sequences: int, num_tokens: int) -> None:
    ascend = len(offsets) == num_sequences + 1 and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
    if not ascend or offsets[-1] > num_tokens:
        raise ValueError(
            f"cu_seqlens must be {num_sequences + 1} offsets that ascend from 0 to at most {num_tokens}, "
            f"the number of tokens, got {shown(offsets.tolist())}"
        )


def _threshold(probability: float) -> int:
    return int(probability * 2**32)


def _is_hit(word: NDArray[np.uint64], probability: float) -> NDArray[np.bool_]:
    hit: NDArray[np.bool_] = (word >> np.uint64(32)) < np.uint64(_threshold(probability))
    return hit


def _drawn(word: NDArray[np.uint64], largest: int) -> IntArray:
    """Turn the lower 32 bits into an id from 1 to `largest`, which must be below 2**31."""
    low = word & np.uint64(2**32 - 1)
    return 1 + (low * np.uint64(largest) >> np.uint64(32)).astype(np.int64)
