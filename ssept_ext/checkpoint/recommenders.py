"""Import of state dicts of recommenders' classes."""

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
    """Make a model from a state dict of recommenders' SSEPT or SASREC, saved by `torch.save`.

    Only tensors are loaded (`weights_only=True`), so the file cannot run code.

    Parameters
    ----------
    kind
        The class to make, SSEPT or SASREC.
    attention_num_heads
        Required, because it cannot be inferred from the parameters: a wrong number loads without an error and gives
        wrong scores.
    arguments
        Other constructor arguments, such as `dropout_rate`. Sizes are inferred from the parameters.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds anything but tensors, or the parameters of another model; names it.

    Examples
    --------
    >>> import tempfile
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(model.state_dict(), f"{folder}/model.pt")
    ...     loaded = SASREC.from_recommenders(f"{folder}/model.pt", attention_num_heads=1)
    >>> loaded.item_num, loaded.seq_max_len
    (9, 4)
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a state dict of tensors: {error}") from error
    foreign = f"{path} is not a state dict of recommenders' {kind.__name__}"
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
    """Infer constructor arguments from the shapes of recommenders' parameters."""
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
