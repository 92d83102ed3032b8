"""RePlay's SASRec for beside_replay.py, called without Lightning and its data loaders."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential.sasrec import SasRec
from torch import Tensor


class Replay:
    """With RePlay's defaults of two blocks and a softmax over all items. Items are numbered from 1, 0 is padding."""

    def __init__(self, num_items: int, width: int, seq_max_len: int, dropout_rate: float) -> None:
        self._num_items = num_items
        item = TensorFeatureInfo(
            "item_id",
            FeatureType.CATEGORICAL,
            is_seq=True,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            cardinality=num_items,
            padding_value=num_items,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            self._module = SasRec(
                TensorSchema([item]),
                hidden_size=width,
                max_seq_len=seq_max_len,
                dropout_rate=dropout_rate,
            )

    def best(self, histories: Tensor, k: int) -> Tensor:
        """(B, k) items that are not among (B, T) histories, padded with 0 on the left."""
        self._module.eval()
        with torch.inference_mode():
            scores = self._module._model.predict(*self._inputs(histories))
            scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)  # for padding
            scores.scatter_(1, self._ids(histories), -torch.inf)
            return scores[:, :-1].topk(k).indices + 1

    def step(self, histories: Tensor, targets: Tensor) -> Callable[[], None]:
        """A training step on (B, T) items and those that follow."""
        self._module.train()
        features, mask = self._inputs(histories)
        optimizer = torch.optim.Adam(self._module.parameters())
        labels = self._ids(targets)

        def step() -> None:
            self._module._compute_loss_ce(features, labels, mask, mask).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _ids(self, items: Tensor) -> Tensor:
        return torch.where(items > 0, items - 1, self._num_items)

    def _inputs(self, histories: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"item_id": self._ids(histories)}, histories > 0
