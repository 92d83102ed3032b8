"""State dicts of recommenders' classes, both ways."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ssept_ext.checkpoint.tensors import sizes_of
from ssept_ext.network.folding import folded
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
    except Exception as error:  # whatever a damaged archive or pickle leads to
        raise ValueError(f"{path} is damaged or not a state dict of tensors: {error}") from error
    foreign = f"{path} is not a state dict of recommenders' {kind.__name__}"
    try:
        sizes = sizes_of({name: x.shape for name, x in tensors.items()}, kind.config_class)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{foreign}: {error!r}") from error
    model = kind(**{**sizes, "attention_num_heads": attention_num_heads, **arguments})
    try:
        model.load_state_dict(tensors)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{foreign}: {error}") from error
    return model


def state_dict_for_recommenders(model: SequentialRecommender) -> dict[str, Tensor]:
    """Return the parameters as a state dict that recommenders' class loads, `strict=True` included.

    There, layers of width 1 are convolutions, and each block has two layer norms that nothing uses.

    Raises
    ------
    ValueError
        If the architecture is not "recommenders", the only one that recommenders has, or items have a second table.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, num_blocks=1, embedding_dim=4, conv_dims=[4, 4])
    >>> model.state_dict_for_recommenders()["encoder.enc_layers.0.ffn.conv_layer1.weight"].shape
    torch.Size([4, 4, 1])
    """
    model = folded(model)
    config = model.config
    if config.architecture != "recommenders":
        raise ValueError(
            f'architecture must be "recommenders" for recommenders to load it, got "{config.architecture}"'
        )
    if not config.tie_item_embeddings:
        raise ValueError(
            "tie_item_embeddings must be True for recommenders to load it, whose items have one table, got False"
        )
    tensors = {
        name: tensor.unsqueeze(2) if "conv_layer" in name and tensor.dim() == 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    unused = model.item_embedding_layer.weight.detach().new_ones(config.hidden_size)
    for block in range(config.num_blocks):
        for norm in ("layernorm1", "layernorm2"):
            prefix = f"encoder.enc_layers.{block}.{norm}"
            tensors |= {f"{prefix}.weight": unused, f"{prefix}.bias": torch.zeros_like(unused)}
    return tensors
