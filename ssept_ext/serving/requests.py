"""Conversion of the users and histories in a request to the model's indices."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import numpy as np

from ssept_ext.data.histories import IntArray, check_ids
from ssept_ext.data.id_map import IdMap, RawId
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.recommender import SequentialRecommender

CANDIDATES = "candidates, the same for all users,"
"""What error messages call the argument."""
_ACCEPTED = {"int64": (int, np.integer), "str": str, "uuid": UUID}


def id_list(name: str, ids: Any) -> list[Any]:
    """Return ids as a list, given as any iterable of ids or one-dimensional array or column.

    Raises
    ------
    TypeError
        If it is something else, such as one id, a mapping or a data frame; names the argument.
    """
    has_rows = len(getattr(ids, "shape", (0,))) != 1
    is_one = isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable)
    if has_rows or is_one or isinstance(ids, Mapping):
        value = f" {ids!r}" if is_one else ""
        raise TypeError(f"{name} must be a sequence of ids, got {type(ids).__name__}{value}")
    to_list = getattr(ids, "tolist", None) or getattr(ids, "to_pylist", None)
    return list(ids) if to_list is None else list(to_list())


def id_lists(histories: Any, users: Iterable[Any] | None = None) -> dict[Any, list[Any]]:
    """Map users, by default all of `histories`, to lists of items; a TypeError names what is no such mapping."""
    if not isinstance(histories, Mapping):
        raise TypeError(
            f"histories must map each user to a sequence of items, as {{user: [item, item]}} does, "
            f"got {type(histories).__name__}"
        )
    asked = histories if users is None else users
    return {user: id_list(f"histories[{user!r}]", histories.get(user, ())) for user in asked}


def check_inside(name: str, ids: IntArray, largest: int | None) -> None:
    """Raise an IndexError if an id is above `largest`, unless that is None; names the id and the table size."""
    if largest is not None and ids.size and ids.max() > largest:
        raise IndexError(
            f"{name} has id {ids.max()}, outside the model's table of {largest + 1} rows (0..{largest})"
        )


def encode_history(model: SequentialRecommender, history: list[Any]) -> IntArray:
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
        return encode_items(model.known, [history], "events")[0]
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
    known: KnownHistories, histories: Iterable[list[Any]], what: str
) -> list[IntArray]:
    """Return the indices of each history's items; unknown items are dropped, with a warning that counts them."""
    encoded = []
    for items in histories:
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


def check_raw_type(id_map: IdMap, ids: Iterable[RawId]) -> None:
    """Raise a TypeError if an id has another type than in training: such ids would pass for new users or items."""
    for value in ids:
        # True is an int, and would pass for 1.
        if not isinstance(value, _ACCEPTED[id_map.type]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise TypeError(
                f"{id_map.noun} ids must be {id_map.type}, as in training, "
                f"got {value!r} of type {type(value).__name__}"
            )
