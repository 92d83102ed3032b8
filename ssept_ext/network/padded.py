"""The interface of recommenders' classes: `forward`, `predict` and `loss_function` on left-padded arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssept_ext.data.packed import PackedBatch, pack
from ssept_ext.network import losses
from ssept_ext.network.config import SSEPTConfig
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.checks import check_one_of

Array = Tensor | npt.NDArray[Any]
Rows = Sequence[npt.ArrayLike] | npt.NDArray[Any]
Side = Literal["pre", "post"]


def pad_sequences(
    sequences: Rows,
    maxlen: int,
    padding: Side = "pre",
    truncating: Side = "pre",
    value: int = 0,
) -> npt.NDArray[np.int64]:
    """Make sequences equally long.

    Parameters
    ----------
    sequences
        B sequences of integers.
    maxlen
        Their length afterwards.
    padding, truncating
        Whether values are added, and left out, at the start ("pre") or at the end ("post").
    value
        What is added.

    Returns
    -------
    npt.NDArray[np.int64]
        (B, maxlen)

    Raises
    ------
    ValueError
        If `padding` or `truncating` is neither "pre" nor "post".

    Examples
    --------
    >>> pad_sequences([[1, 2], [3, 4, 5, 6]], maxlen=3)
    array([[0, 1, 2],
           [4, 5, 6]])
    """
    for name, side in (("padding", padding), ("truncating", truncating)):
        check_one_of(name, side, ("pre", "post"))
    padded = np.full((len(sequences), maxlen), value, np.int64)
    for row, sequence in zip(padded, map(np.asarray, sequences), strict=True):
        surplus = max(0, len(sequence) - maxlen)
        kept = sequence[surplus:] if truncating == "pre" else sequence[: len(sequence) - surplus]
        start = maxlen - len(kept) if padding == "pre" else 0
        row[start : start + len(kept)] = kept
    return padded


def is_ours(method: object) -> bool:
    """Whether a method, if it exists, is this package's own, not overridden by a user."""
    return getattr(method, "__module__", "").startswith("ssept_ext.")


class PaddedInterface(SequentialRecommender):
    """A `SequentialRecommender` with the methods of recommenders' classes, which take padded arrays.

    The arrays are checked and packed here; the rest of the package works on packed batches. So it never calls these
    methods, and a subclass that overrides one gets a TypeError when it is defined.
    """

    uncalled: ClassVar[Mapping[str, tuple[str, Sequence[str]]]] = {
        "forward": ("training_loss", ["train_model"]),
        "loss_function": ("training_loss", ["train_model"]),
        "create_combined_dataset": ("training_loss", ["train_model"]),
        "predict": ("score", ["evaluate", "evaluate_valid"]),
    }
    """Methods that are useless to override: what to override instead, and the methods of this package that would have
    to call them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, (instead, callers) in cls.uncalled.items():
            ignored_by = [caller for caller in callers if is_ours(getattr(cls, caller, None))]
            if ignored_by and not is_ours(getattr(cls, name)):
                raise TypeError(
                    f"{cls.__name__} overrides {name}, which {ignored_by[0]} does not call: override {instead}"
                )

    def forward(  # type: ignore[override]  # recommenders' signature
        self, x: Mapping[str, Array], training: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score the positives and negatives of a padded batch, as recommenders' `forward` does.

        Parameters
        ----------
        x
            "users" (B, 1), and "input_seq", "positive" and "negative" (B, T), left-padded with 0: NumPy arrays or
            tensors of integers. SASREC needs no "users".
        training
            False turns dropout and SSE off even if the module is in training mode.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor]
            Positive logits (B·T, 1), negative logits (B·T, 1), and (B·T,) float 1 where a position has a target. The
            logits are exactly 0 elsewhere.

        Raises
        ------
        ValueError, IndexError
            If an array has the wrong type or shape, or an id is outside its table; names it.
        """
        seq = self._ids(x, "input_seq", self.item_num)
        positive = self._ids(x, "positive", self.item_num, like=seq)
        negative = self._ids(x, "negative", self.item_num, like=seq)
        is_target = (positive != 0) & (seq != 0)
        batch = self._pack(x, "users", seq, positive, torch.where(is_target, negative, 0))
        logits = self.sampled_logits(batch, training)
        padded = logits.new_zeros(*seq.shape, 2).masked_scatter((seq != 0).unsqueeze(-1), logits)
        positive_logits, negative_logits = padded.view(-1, 1, 2).unbind(2)
        return positive_logits, negative_logits, is_target.view(-1).to(logits.dtype)

    def loss_function(self, pos_logits: Tensor, neg_logits: Tensor, istarget: Tensor) -> Tensor:
        """Binary cross-entropy of what `forward` returns, averaged over the positions that have a target."""
        logits = torch.cat([pos_logits.view(-1, 1), neg_logits.view(-1, 1)], 1)
        return losses.bce(logits, istarget.view(-1))

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Array]) -> Tensor:
        """Score candidates as the next item of padded sequences.

        Parameters
        ----------
        inputs
            "user" (B,) or (B, 1), "input_seq" (B, T) and "candidate" (B, C): NumPy arrays or tensors of
            integers. SASREC needs no "user". Rows that are all padding get finite scores too.

        Returns
        -------
        Tensor
            (B, C) scores, without gradient and without dropout.

        Raises
        ------
        ValueError, IndexError
            If an array has the wrong type or shape, or an id is outside its table; names it.

        Examples
        --------
        >>> from ssept_ext import SASREC
        >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
        >>> model.predict({"input_seq": [[0, 0, 3, 5], [0, 7, 2, 4]], "candidate": [[1, 6, 8], [3, 5, 9]]}).shape
        torch.Size([2, 3])
        """
        return self.score(*self._to_score(inputs))

    def create_combined_dataset(
        self,
        u: npt.ArrayLike,
        seq: Rows,
        pos: Rows,
        neg: Rows,
    ) -> tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
        """Turn a sampler's lists into the input of `forward`, left-padded to T; of longer rows, the newest T remain.

        Returns
        -------
        tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.int64]]
            The inputs, and the (2·B·T, 1) labels that recommenders' loss once took: ones, then zeros.
        """
        inputs = {
            "users": np.asarray(u, np.int64).reshape(-1, 1),
            "input_seq": pad_sequences(seq, self.seq_max_len),
            "positive": pad_sequences(pos, self.seq_max_len),
            "negative": pad_sequences(neg, self.seq_max_len),
        }
        labels = np.repeat(np.array([1, 0]), inputs["input_seq"].size)
        return inputs, labels[:, None]

    def _to_score(self, inputs: Mapping[str, Array]) -> tuple[PackedBatch, Tensor]:
        """Check the inputs of `predict`, and make those of `score` from them."""
        seq = self._ids(inputs, "input_seq", self.item_num)
        candidates = self._ids(inputs, "candidate", self.item_num)
        if candidates.shape[0] != seq.shape[0]:
            raise ValueError(
                f"candidate must have {seq.shape[0]} rows, as input_seq has, got {candidates.shape[0]}"
            )
        return self._pack(inputs, "user", seq), candidates

    def _pack(
        self,
        x: Mapping[str, Array],
        users_key: str,
        seq: Tensor,
        positive: Tensor | None = None,
        negative: Tensor | None = None,
    ) -> PackedBatch:
        if seq.shape[1] > self.seq_max_len:
            raise ValueError(
                f"input_seq has {seq.shape[1]} columns, more than seq_max_len {self.seq_max_len}"
            )
        users = torch.zeros(seq.shape[0], dtype=torch.int64, device=self.device)
        if isinstance(self.config, SSEPTConfig):
            users = self._ids(x, users_key, self.config.user_num).reshape(-1)
            if users.shape[0] != seq.shape[0]:
                raise ValueError(
                    f"{users_key} must have {seq.shape[0]} rows, as input_seq has, got {users.shape[0]}"
                )
        batch = pack(users, seq, positive, negative)
        # The newest event is always at seq_max_len - 1, even if there are fewer columns.
        return replace(batch, positions=batch.positions + (self.seq_max_len - seq.shape[1]))

    def _ids(
        self, x: Mapping[str, Array], name: str, largest: int, like: Tensor | None = None
    ) -> Tensor:
        """Check one array of ids and move it to the model's device. Users may have one dimension."""
        if name not in x:
            raise ValueError(f'the input lacks "{name}"; it has {", ".join(map(str, x))}')
        value = x[name]  # as_tensor would move a tensor to torch's default device
        try:
            ids = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} must be an array of integers, the numbers of users or items (raw ids get theirs by "
                f"model.known.user_ids.encode and item_ids.encode): {error}"
            ) from None
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"{name} must hold integers, got {ids.dtype}")
        if ids.dim() == 1 and name in ("user", "users"):
            ids = ids[:, None]
        if ids.dim() != 2 or (name in ("user", "users") and ids.shape[1] != 1):
            raise ValueError(f"{name} must have two dimensions, got shape {tuple(ids.shape)}")
        if like is not None and ids.shape != like.shape:
            raise ValueError(
                f"{name} must have shape {tuple(like.shape)}, as input_seq has, got {tuple(ids.shape)}"
            )
        ids = ids.to(torch.int64)
        if ids.numel():
            low, high = (int(v) for v in torch.aminmax(ids))
            if low < 0 or high > largest:
                raise IndexError(
                    f"{name} has id {low if low < 0 else high}, outside its table of "
                    f"{largest + 1} rows (0..{largest})"
                )
        return ids.to(self.device)
