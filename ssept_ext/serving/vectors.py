"""Vectors of items and users, for a nearest-neighbour index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.raw_ids import id_list
from ssept_ext.data.times import Time
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ranking.catalogue import encode_groups, scoring
from ssept_ext.serving.requests import (
    check_indices,
    encode_ids,
    encode_items,
    requested_at,
    times_of_events,
    times_to_ask_at,
)


def item_vectors(model: SequentialRecommender) -> NDArray[np.floating]:
    """Return the vectors by which all items are scored, for a nearest-neighbour index by inner product.

    Row r is item r + 1; in a model with raw ids, that is `model.known.item_ids.raw[r]`.

    Returns
    -------
    NDArray[np.floating]
        (item_num, Di) float32 or wider.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4]).item_vectors().shape
    (9, 4)
    """
    weight = model.scores.vectors(model.output_table().detach()[1:])
    return _to_numpy(weight.to(torch.promote_types(weight.dtype, torch.float32)))


def user_state(
    model: SequentialRecommender,
    history: Sequence[Any],
    user: Any | None = None,
    *,
    at: Time | None = None,
    history_times: Sequence[Time] | None = None,
) -> NDArray[np.floating]:
    """Return the query vector of a user: its inner products with `item_vectors` rank items as `recommend` does.

    The inner products equal the scores except for the user's part, which is the same for all items. The items of
    `history` are not excluded: retrieve that many more from the index.

    Parameters
    ----------
    history
        Items, oldest first: raw ids if the model has them, else indices. Unknown raw ids are dropped, with a warning.
    user
        The user's raw id or index. None, or an unknown user, gets the mean of all users' vectors.
    at, history_times
        For a model with `time_bias`: when the next event will be, as for `recommend`, and the times of `history`.

    Returns
    -------
    NDArray[np.floating]
        (Di,) float32 or wider.

    Raises
    ------
    ValueError
        If no event is left, an index is not an integer from 1, or times are missing.
    TypeError, IndexError
        If `history` is not a sequence of ids, a raw id does not have the type of the ids in training, or an index is
        outside its table.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> (model.item_vectors() @ model.user_state([3, 5])).shape
    (9,)
    """
    one, when = one_history(model, history, user, at, history_times)
    with scoring(model):
        ((_, queries, _),) = encode_groups(model, one, 1, when)
    return _to_numpy(queries[0])


def one_history(
    model: SequentialRecommender,
    history: Sequence[Any],
    user: Any,
    at: Time | None,
    history_times: Sequence[Time] | None,
) -> tuple[Histories, IntArray | None]:
    """Return a user's history in indices, without unknown items, and when the next item is asked for."""
    known, given, number = model.known, id_list("history", history), 0
    times = None
    if history_times is not None:
        times = times_of_events("history_times", history_times, len(given))
    if known is None:
        items = check_indices(model, "item", given)
        if user is not None:
            number = check_indices(model, "user", [user])[0]
    else:
        (items,) = encode_items(known, [given], "events")
        times = None if times is None else times[items != 0]
        items = items[items != 0]
        if user is not None:
            number = encode_ids(known.user_ids, [user])[0]
    if not len(items):
        raise ValueError(f"history must hold an item that the model knows, got {len(given)} others")
    one = Histories(np.array([number]), np.array([0, len(items)]), items, times)
    when = times_to_ask_at(model, one, requested_at(at, 1))
    return one, when


def _to_numpy(x: Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = x.cpu().numpy()
    return array
