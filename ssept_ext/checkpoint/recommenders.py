"""Import of state dicts of recommenders' classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import torch

from ssept_ext.checkpoint.tensors import sizes_of
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
