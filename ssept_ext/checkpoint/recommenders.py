"""Models from the state dicts of recommenders' classes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ssept_ext.network.config import SSEPTConfig
from ssept_ext.network.recommender import SequentialRecommender

Model = TypeVar("Model", bound=SequentialRecommender)


def load_recommenders(
    kind: type[Model],
    path: str | os.PathLike[str],
    attention_num_heads: int,
    **arguments: Any,
) -> Model:
    """Make a model of the state dict that `torch.save` wrote of recommenders' SSEPT or SASREC.

    Only tensors are read (`weights_only=True`): the file cannot run code.

    Parameters
    ----------
    kind
        SSEPT or SASREC.
    attention_num_heads
        Required, because parameters do not tell it, and another number loads as well
        and gives other scores.
    arguments
        More of the constructor's, such as `dropout_rate`; sizes come from the parameters.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds other things than tensors or parameters of another model; names it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no state dict of tensors: {error}") from error
    foreign = f"{path} holds no {kind.__name__} of recommenders"
    try:
        sizes = _sizes(tensors, kind)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{foreign}: {error!r}") from error
    model = kind(**{**sizes, "attention_num_heads": attention_num_heads, **arguments})
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{foreign}: {error}") from error
    return model


def _sizes(tensors: Mapping[str, Tensor], kind: type[SequentialRecommender]) -> dict[str, Any]:
    """The constructor arguments that the shapes of recommenders' parameters tell."""
    items, item_width = tensors["item_embedding_layer.weight"].shape
    seq_max_len, width = tensors["positional_embedding_layer.weight"].shape
    inner = tensors["encoder.enc_layers.0.ffn.conv_layer1.weight"].shape[0]
    blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.enc_layers.")}
    sizes = {
        "item_num": items - 1,
        "seq_max_len": seq_max_len,
        "num_blocks": len(blocks),
        "embedding_dim": item_width,
        "conv_dims": (inner, width),
    }
    if issubclass(kind.config_class, SSEPTConfig):
        users, user_width = tensors["user_embedding_layer.weight"].shape
        sizes |= {"user_num": users - 1, "user_embedding_dim": user_width}
    return sizes
