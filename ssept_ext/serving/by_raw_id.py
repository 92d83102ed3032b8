"""Recommendations by raw ids, as data frames."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.serving.by_index import rank_catalogue, similar_by_index
from ssept_ext.serving.frames import take_rows, to_frame
from ssept_ext.serving.requests import check_raw_type, encode_items, known_of


def recommend_by_raw_id(
    model: SequentialRecommender,
    histories: Mapping[Any, Sequence[Any]] | None = None,
    users: Sequence[Any] | None = None,
    k: int = 10,
    *,
    candidates: Collection[Any] | None = None,
    exclude_seen: bool = True,
    with_scores: bool = True,
    batch_size: int = 256,
) -> Any:
    """As `recommend`, on raw ids, for anybody; a model that knows raw ids has it as `recommend`.

    A user who was not trained on gets the mean of all users' vectors (SASREC has none and needs
    none). A user without any event of a known item gets the most popular items, those with the most
    events in the model's histories, and NaN for scores.

    Parameters
    ----------
    histories
        Raw user id to raw item ids, oldest first, to be used instead of what the model knows
        of these users. Events of items that it does not know are dropped, with a warning that
        counts them.
    users
        Whom to recommend to; None for all of `histories`, or else for all users the model knows.
    k
        Rows for each user, fewer where fewer items are left.
    candidates
        The items to choose from; unknown ones are dropped as above; None for all.
    with_scores
        False leaves the column out.
    exclude_seen, batch_size
        As for `recommend`.

    Returns
    -------
    data frame
        A data frame with the columns user, item, score and rank (from 1), users in the order asked for and
        best items first.

    Raises
    ------
    TypeError
        If an id is not of the type that the model was trained with; names both.
    ValueError
        As `recommend`; and if the model was saved without histories, and none is passed of a user that it knows.
    ImportError
        If narwhals is missing: it comes with `ssept_ext[data]`.
    """
    known = known_of(model)
    catalogue = None
    if candidates is not None:
        catalogue = encode_items(known, {"candidates": list(candidates)}, "candidates")[0]
    live = {}
    if histories is not None:
        live = dict(zip(histories, encode_items(known, histories, "events"), strict=True))
    if users is None:
        users = known.user_ids.raw.tolist() if histories is None else list(histories)
    check_raw_type(known.user_ids, users)
    numbers = known.user_ids.encode(users, unknown="zero")
    events = [
        live[user] if user in live else known.of(number)
        for user, number in zip(users, numbers.tolist(), strict=True)
    ]
    lengths = np.array([len(row) for row in events], np.int64)
    warm = lengths > 0
    offsets = np.cumsum(np.append(0, lengths[warm]))
    asked = Histories(numbers[warm], offsets, np.concatenate([*events, np.zeros(0, np.int64)]))
    found = rank_catalogue(model, asked, k, catalogue, exclude_seen, batch_size)

    items = np.empty((len(users), found.items.shape[1]), np.int64)
    scores = np.full(items.shape, math.nan, found.scores.dtype)
    items[warm], scores[warm] = found
    if not warm.all():
        items[~warm] = _most_popular(known, catalogue, items.shape[1])
    row, column = np.nonzero(items)
    answer = {
        "user": take_rows(users, row),
        "item": known.item_ids.decode(items[row, column]),
        "score": scores[row, column],
        "rank": column + 1,
    }
    if not with_scores:
        del answer["score"]
    return to_frame(answer)


def similar_by_raw_id(model: SequentialRecommender, items: Sequence[Any], k: int = 10) -> Any:
    """As `similar_items`, on raw ids; a model that knows raw ids has it as `similar_items`.

    Returns
    -------
    data frame
        A data frame with the columns item, similar_item, score (the cosine) and rank (from 1).

    Raises
    ------
    KeyError, TypeError
        If an item is unknown, or an id is not of the type that the model was trained with; names it.
    ValueError, ImportError
        As `recommend_by_raw_id`.
    """
    known = known_of(model)
    check_raw_type(known.item_ids, items)
    found = similar_by_index(model, known.item_ids.encode(items).tolist(), k)
    row, column = np.nonzero(found.items)
    return to_frame(
        {
            "item": take_rows(items, row),
            "similar_item": known.item_ids.decode(found.items[row, column]),
            "score": found.scores[row, column],
            "rank": column + 1,
        }
    )


def _most_popular(known: KnownHistories, catalogue: IntArray | None, k: int) -> IntArray:
    """(k,) items with the most events, best first; equal ones by rising number."""
    items = np.arange(1, len(known.popularity)) if catalogue is None else np.unique(catalogue)
    return items[np.argsort(-known.popularity[items], kind="stable")[:k]]
