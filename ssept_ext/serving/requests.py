"""Conversion of the users and histories in a request to the model's indices."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np

from ssept_ext.data.histories import IntArray, check_ids
from ssept_ext.data.id_map import IdMap, RawId
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.serving.by_index import check_inside

_ACCEPTED = {"int64": (int, np.integer), "str": str, "uuid": UUID}


def encode_history(model: SequentialRecommender, history: Sequence[Any]) -> IntArray:
    """Return the indices of a history's items.

    If the model has raw ids, the history consists of these, and unknown ones are dropped with a warning; otherwise it
    consists of indices.

    Raises
    ------
    ValueError
        If an index is not an integer from 1.
    TypeError, IndexError
        If a raw id does not have the type of the ids in training, or an index is outside the table.
    """
    if model.known is not None:
        return encode_items(model.known, {"history": history}, "events")[0]
    numbers = check_ids(history, "item")
    check_inside("item", numbers, model.item_num)
    return numbers


def encode_user(model: SequentialRecommender, user: Any | None) -> int:
    """Return the index of a user, given by raw id if the model has raw ids; 0 for None or an unknown user."""
    if user is None:
        return 0
    if model.known is not None:
        check_raw_type(model.known.user_ids, [user])
        return int(model.known.user_ids.encode([user], unknown="zero")[0])
    numbers = check_ids([user], "user")
    check_inside("user", numbers, getattr(model, "user_num", None))
    return int(numbers[0])


def known_of(model: SequentialRecommender) -> KnownHistories:
    """Return the raw ids and histories of a model; a ValueError if it has none."""
    if model.known is None:
        raise ValueError(f"this model has no raw ids: train it with {type(model).__name__}.fit")
    return model.known


def encode_items(
    known: KnownHistories, histories: Mapping[Any, Sequence[Any]], what: str
) -> list[IntArray]:
    """Return the indices of each history's items; unknown items are dropped, with a warning that counts them."""
    encoded = []
    for items in histories.values():
        check_raw_type(known.item_ids, items)
        encoded.append(known.item_ids.encode(items, unknown="zero"))
    num_all = sum(map(len, encoded))
    kept = [numbers[numbers != 0] for numbers in encoded]
    if unknown := num_all - sum(map(len, kept)):
        warnings.warn(
            f"dropped {unknown} of {num_all} {what}, because their items are not among the "
            f"{len(known.item_ids)} that the model knows",
            stacklevel=4,
        )
    return kept


def check_raw_type(id_map: IdMap, ids: Sequence[RawId]) -> None:
    """Raise a TypeError if an id has another type than in training: such ids would pass for new users or items."""
    if isinstance(ids, str):
        raise TypeError(f"{id_map.noun}s must be a sequence of ids, got the string {ids!r}")
    for value in ids:
        if not isinstance(value, _ACCEPTED[id_map.type]):  # type: ignore[arg-type]
            raise TypeError(
                f"{id_map.noun} ids must be {id_map.type}, as in training, "
                f"got {value!r} of type {type(value).__name__}"
            )
