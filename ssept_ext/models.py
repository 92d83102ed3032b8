"""The public model classes, `SASREC` and `SSEPT`.

The network is in `ssept_ext.network`. Training, evaluation, serving and checkpoints are functions that take
a model as their first argument; the class bodies here bind them as methods.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from ssept_ext._extension import Backend
from ssept_ext.checkpoint import (
    load_checkpoint,
    load_recommenders,
    save_checkpoint,
    state_dict_for_recommenders,
)
from ssept_ext.data.interactions import Interactions
from ssept_ext.evaluation import evaluate, evaluate_full, evaluate_ranks, evaluate_valid
from ssept_ext.network.config import SASRECConfig, SSEPTConfig, config_from_arguments
from ssept_ext.network.content import checked_features
from ssept_ext.network.growing import add_items
from ssept_ext.network.padded import PaddedInterface
from ssept_ext.ranking.compressing import compress
from ssept_ext.serving import explain, item_vectors, recommend, similar_items, user_state
from ssept_ext.training import fit, train_model, update

Self = TypeVar("Self", bound="SASREC")


def _signature(config_class: type[SASRECConfig]) -> Signature:
    """Make the signature of a constructor that takes a config's fields and a backend, by keyword."""
    required = [field for field in fields(config_class) if field.default is MISSING]
    optional = [field for field in fields(config_class) if field.default is not MISSING]
    kind = Parameter.KEYWORD_ONLY
    return Signature(
        [
            Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
            *(Parameter(field.name, kind, annotation=field.type) for field in required),
            *(
                Parameter(field.name, kind, default=field.default, annotation=field.type)
                for field in optional
            ),
            Parameter("backend", kind, default="auto", annotation="Backend"),
            Parameter("item_features", kind, default=None, annotation="Any"),
        ]
    )


class SASREC(PaddedInterface):
    """SASRec (Kang & McAuley, ICDM 2018), with the arguments of recommenders' class: see `SASRECConfig`.

    There are more arguments than in recommenders, such as `architecture` and `backend` ("auto", "native" or
    "reference"; see `ssept_ext.set_backend`). `item_features`, (item_num + 1, F) with row 0 zero, are what is known of
    the items, such as embeddings of their texts: a learned projection of them is added to the items' vectors. A
    TypeError or ValueError names a wrong argument.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=50, seq_max_len=8, embedding_dim=16, conv_dims=[16, 16])
    >>> model.predict({"input_seq": [[0] * 5 + [3, 7, 9]], "candidate": [[4, 5]]}).shape
    torch.Size([1, 2])
    """

    config_class: ClassVar[type[SASRECConfig]] = SASRECConfig

    def __init__(
        self, *, backend: Backend = "auto", item_features: Any = None, **arguments: Any
    ) -> None:
        if item_features is not None:
            item_features = checked_features(item_features, arguments.get("item_feature_dim"))
            arguments["item_feature_dim"] = item_features.shape[1]
        config = config_from_arguments(self.config_class, type(self).__name__, arguments)
        super().__init__(config, backend)
        if item_features is not None:
            assert self.content is not None
            self.content.set_features(item_features)

    train_model = train_model
    update = update
    evaluate = evaluate
    evaluate_valid = evaluate_valid
    evaluate_full = evaluate_full
    evaluate_ranks = evaluate_ranks
    recommend = recommend
    similar_items = similar_items
    compress = compress
    explain = explain
    item_vectors = item_vectors
    user_state = user_state
    add_items = add_items
    save_pretrained = save_checkpoint
    state_dict_for_recommenders = state_dict_for_recommenders

    @classmethod
    def fit(cls: type[Self], interactions: Interactions, **options: Any) -> Self:
        """Train a model on events with raw ids: see `ssept_ext.training.fit`.

        Examples
        --------
        >>> import pyarrow as pa
        >>> from ssept_ext import SASREC, Interactions
        >>> frame = pa.table({"user": ["ann", "ann", "bob"], "item": [10, 20, 30], "timestamp": [1, 2, 3]})
        >>> options = {"seq_max_len": 4, "embedding_dim": 4, "num_epochs": 1}
        >>> model = SASREC.fit(Interactions.from_dataframe(frame), **options, verbose=False)
        >>> model.item_num
        3
        """
        return fit(cls, interactions, **options)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        folder: str | os.PathLike[str],
        *,
        backend: Backend = "auto",
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a model that `save_pretrained` wrote: see `ssept_ext.checkpoint.load_checkpoint`.

        Raises
        ------
        ValueError
            If `folder` holds a model of another class. `SASREC` also loads an SSEPT, which is a subclass.
        """
        classes: dict[str, type[SASREC]] = {**_CLASSES, cls.__name__: cls}
        model = load_checkpoint(classes, folder, backend, device)
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    @classmethod
    def from_recommenders(
        cls: type[Self],
        path: str | os.PathLike[str],
        *,
        attention_num_heads: int,
        **arguments: Any,
    ) -> Self:
        """Load a state dict of recommenders' class: see `ssept_ext.checkpoint.load_recommenders`."""
        return load_recommenders(cls, path, attention_num_heads, **arguments)


class SSEPT(SASREC):
    """SSE-PT (Wu et al., RecSys 2020), with the arguments of recommenders' class: see `SSEPTConfig`.

    It takes the additional arguments of `SASREC`. It deliberately differs from recommenders' class: masks come from
    the ids, logits at padding are exactly 0, `item_embedding_dim` may differ from `embedding_dim`, and ties count
    against the model.

    Examples
    --------
    >>> from ssept_ext import SSEPT
    >>> model = SSEPT(item_num=50, user_num=20, seq_max_len=8, embedding_dim=8, conv_dims=[16, 16])
    >>> inputs = {"user": [3], "input_seq": [[0] * 5 + [3, 7, 9]], "candidate": [[4, 5]]}
    >>> model.predict(inputs).shape
    torch.Size([1, 2])
    """

    config_class = SSEPTConfig
    config: SSEPTConfig
    user_embedding_layer: nn.Embedding

    def __init__(
        self, *, backend: Backend = "auto", item_features: Any = None, **arguments: Any
    ) -> None:
        super().__init__(backend=backend, item_features=item_features, **arguments)

    @property
    def user_num(self) -> int:
        """Users have the ids 1..user_num."""
        return self.config.user_num


# `inspect.signature` and `help` then show every argument with its default.
for _kind in (SASREC, SSEPT):
    _kind.__init__.__signature__ = _signature(_kind.config_class)  # type: ignore[attr-defined]

_CLASSES = {kind.__name__: kind for kind in (SASREC, SSEPT)}
