"""Conversion of the users and histories in a request to the model's indices."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any, Literal
from uuid import UUID

import numpy as np

from ssept_ext.data.histories import IntArray, check_ids, check_mapping
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.raw_ids import RawId, id_list
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.checks import shown

CANDIDATES = "candidates, the same for all users,"
"""What error messages call the argument."""
_ACCEPTED = {"int64": (int, np.integer), "str": str, "uuid": UUID}


def id_lists(histories: Any, users: Iterable[Any] | None = None) -> dict[Any, list[Any]]:
    """Map users, by default all of `histories`, to lists of items; a TypeError names what is no such mapping."""
    check_mapping(histories)
    asked = histories if users is None else users
    return {user: id_list(f"histories[{shown(user)}]", histories.get(user, ())) for user in asked}


def check_indices(model: SequentialRecommender, noun: str, ids: Collection[int]) -> IntArray:
    """Return "user" or "item" ids of a model without raw ids as an array.

    Raises
    ------
    ValueError, IndexError
        If one is not an integer from 1, or is outside the model's table; names it.
    """
    numbers = check_ids(ids, noun)
    largest = getattr(model, f"{noun}_num", None)  # SASREC has no users
    if largest is not None and numbers.size and numbers.max() > largest:
        raise IndexError(
            f"{noun} has id {numbers.max()}, outside the model's table of {largest + 1} rows (0..{largest})"
        )
    return numbers


def encode_items(
    known: KnownHistories, histories: Iterable[list[Any]], what: str
) -> list[IntArray]:
    """Return the indices of each history's items; unknown items are dropped, with a warning that counts them."""
    given = list(histories)
    numbers = encode_ids(known.item_ids, list(chain.from_iterable(given)))
    encoded = np.split(numbers, np.cumsum([len(items) for items in given])[:-1]) if given else []
    num_all = len(numbers)
    kept = [row[row != 0] for row in encoded]
    if unknown := num_all - sum(map(len, kept)):
        warnings.warn(
            f"dropped {unknown} of {num_all} {what}, because their items are not among the "
            f"{len(known.item_ids)} that the model knows",
            stacklevel=4,
        )
    return kept


def encode_ids(
    id_map: IdMap, ids: Collection[RawId], unknown: Literal["raise", "zero"] = "zero"
) -> IntArray:
    """Return the indices of raw ids, 0 for unknown ones, or a KeyError; a TypeError as `check_types`."""
    check_types(id_map, ids)
    return id_map.encode(list(ids), unknown)


def check_types(id_map: IdMap, ids: Iterable[Any]) -> None:
    """Raise a TypeError that names an id of another type than in training, which would pass for unknown."""
    for value in ids:
        # True is an int, and would pass for 1.
        if not isinstance(value, _ACCEPTED[id_map.type]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise TypeError(
                f"{id_map.noun} ids must be {id_map.type}, as in training, "
                f"got {shown(value)} of type {type(value).__name__}"
            )
