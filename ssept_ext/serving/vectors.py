"""Vectors of items and users for an index of nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data.histories import Histories
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ranking.catalogue import encode_groups, scoring
from ssept_ext.serving.requests import encode_history, encode_user


def item_vectors(model: SequentialRecommender) -> NDArray[np.floating]:
    """The vectors of the items 1..item_num, for an index of nearest neighbours by inner product.

    Row r is that of item number r + 1, which a model of raw ids calls `model.known.item_ids.raw[r]`.

    Returns
    -------
    NDArray[np.floating]
        (item_num, Di) float32 or wider.
    """
    weight = model.item_embedding_layer.weight.detach()[1:]
    return _to_numpy(weight.to(torch.promote_types(weight.dtype, torch.float32)))


def user_state(
    model: SequentialRecommender, history: Sequence[Any], user: Any | None = None
) -> NDArray[np.floating]:
    """The vector whose inner products with `item_vectors` order items as `recommend` does.

    They are the scores, but for what is the same for all items. Nothing hides the items of `history`: ask an
    index for as many more.

    Parameters
    ----------
    history
        Items, oldest first: raw ids if the model knows them, and then those that it does not know
        are dropped with a warning; numbers otherwise.
    user
        Raw id or number; None, or one who is unknown, gets the mean of all users' vectors.

    Returns
    -------
    NDArray[np.floating]
        (Di,) float32 or wider.

    Raises
    ------
    ValueError
        If no event is left, or a number is no integer from 1.
    TypeError, IndexError
        If a raw id is of another type than in training, or a number is outside its table.
    """
    items = encode_history(model, history)
    if not len(items):
        raise ValueError(
            f"history must hold an item that the model knows, got {len(history)} others"
        )
    one = Histories(np.array([encode_user(model, user)]), np.array([0, len(items)]), items)
    with scoring(model):
        ((_, queries, _),) = encode_groups(model, one, 1)
    return _to_numpy(queries[0])


def _to_numpy(x: Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = x.cpu().numpy()
    return array
