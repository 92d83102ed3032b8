"""Recommendations and similar items by raw ids, as data frames.

Examples
--------
>>> import pyarrow as pa
>>> from ssept_ext import SASREC, Interactions
>>> events = pa.table({"user": ["ann", "ann", "bob", "bob"], "item": [10, 20, 20, 30], "timestamp": [1, 2, 3, 4]})
>>> sizes = {"seq_max_len": 4, "embedding_dim": 4, "num_epochs": 1}
>>> model = SASREC.fit(Interactions.from_dataframe(events), **sizes, verbose=False)
>>> frame = model.recommend(users=["ann"], k=5)  # ann has seen 10 and 20
>>> list(frame["item"])
[30]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ssept_ext.data.frames import take_rows, to_frame
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.raw_ids import id_list
from ssept_ext.data.times import Time
from ssept_ext.network.identity import reads_times
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.serving.by_index import Recommendations, rank_catalogue, similar_by_index
from ssept_ext.serving.requests import (
    CANDIDATES,
    check_types,
    encode_ids,
    encode_items,
    id_lists,
    requested_at,
    times_of,
)


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
    at: Time | Sequence[Time] | None = None,
    history_times: Mapping[Any, Sequence[Time]] | None = None,
) -> Any:
    """Return the k best items of each user, by raw ids: `recommend` of a model trained by `fit`.

    Unknown users get the mean of all users' vectors, if the model has any. Users without an event of a known item get
    the most popular items, those with the most events in the stored histories, and NaN as scores.

    Parameters
    ----------
    histories
        Raw user id to raw item ids, oldest first; they replace stored ones. Unknown items are dropped, with a warning.
    users
        Users to recommend to; None for all of `histories` or, without it, for all users of the model.
    k
        Items per user, fewer if fewer are left.
    candidates
        Items to choose from, the same for all users; None for all. Unknown ones are dropped, with a warning.
    exclude_seen, batch_size, at
        See `ssept_ext.serving.by_index.recommend_by_index`.
    with_scores
        Whether to return scores.
    history_times
        For a model with `time_bias`: raw user id to the times of the events in `histories`, oldest first.

    Returns
    -------
    data frame
        Columns user, item, score and rank (from 1); users in the given order, each with the best item first.

    Raises
    ------
    TypeError
        If an id has another type than in training, or an argument is no sequence or mapping of ids; names both types.
    ValueError
        If an argument is out of range, a score is not finite, or histories or times are neither stored nor given.
    ImportError
        If narwhals is not installed; it comes with `ssept_ext[data]`.
    """
    known, catalogue = model.known, None
    assert known is not None
    if candidates is not None:
        choices = id_list(CANDIDATES, candidates, in_order=False)
        (catalogue,) = encode_items(known, [choices], "candidates")
        catalogue = catalogue[catalogue != 0]
    live = {} if histories is None else _encoded(known, histories, history_times)
    if users is None:
        users = known.user_ids.raw.tolist() if histories is None else list(live)
    users = id_list("users", users)
    numbers = encode_ids(known.user_ids, users)
    events = [
        live[user] if user in live else known.events(number)
        for user, number in zip(users, numbers.tolist(), strict=True)
    ]
    when = requested_at(at, len(users))
    items, scores = rank_events(
        model, numbers, events, k, catalogue, exclude_seen, batch_size, when
    )
    row, column = np.nonzero(items)
    answer = {
        "user": take_rows(users, row, known.user_ids),
        "item": known.item_ids.decode(items[row, column]),
        "score": scores[row, column],
        "rank": column + 1,
    }
    if not with_scores:
        del answer["score"]
    return to_frame(answer)


def rank_events(
    model: SequentialRecommender,
    users: IntArray,
    events: Sequence[tuple[IntArray, IntArray | None]],
    k: int,
    catalogue: IntArray | None = None,
    exclude_seen: bool = True,
    batch_size: int = 256,
    at: IntArray | None = None,
) -> Recommendations:
    """Return the k best items of each user, by index: for a user without events the most popular ones, scored NaN.

    Parameters
    ----------
    users
        (n,) indices of users, 0 for an unknown one.
    events
        Each user's items and their times, oldest first; times are None for a model that reads none.
    k, catalogue, exclude_seen, batch_size, at
        As `ssept_ext.serving.by_index.rank_catalogue` takes them.

    Raises
    ------
    ValueError
        As `rank_catalogue`, and if a user has no events and the model does not know which items are popular.
    """
    lengths = np.array([len(items) for items, _ in events], np.int64)
    warm = lengths > 0
    if model.known is None and not warm.all():
        raise ValueError("each user must have an event, because this model stores no popularity")
    offsets = np.cumsum(np.append(0, lengths[warm]))
    times = [times for items, times in events if len(items)] if reads_times(model) else [None]
    asked = Histories(
        users[warm],
        offsets,
        np.concatenate([*(items for items, _ in events), _NONE]),
        None if any(x is None for x in times) else np.concatenate([*times, _NONE]),
    )
    when = None if at is None else at[warm]
    found = rank_catalogue(model, asked, k, catalogue, exclude_seen, batch_size, when)
    items = np.empty((len(users), found.items.shape[1]), np.int64)
    scores = np.full(items.shape, math.nan, found.scores.dtype)
    items[warm], scores[warm] = found
    if not warm.all():
        assert model.known is not None
        items[~warm] = _most_popular(model.known, catalogue, items.shape[1])
    return Recommendations(items, scores)


def similar_by_raw_id(model: SequentialRecommender, items: Sequence[Any], k: int = 10) -> Any:
    """Return the k most similar items of each item, by raw ids: `similar_items` of a model trained by `fit`.

    Returns
    -------
    data frame
        Columns item, similar_item, score (the cosine of their vectors) and rank (from 1).

    Raises
    ------
    KeyError, TypeError
        If an item is unknown, or does not have the type of the ids in training; names it.
    ValueError
        If `k` is below 1, or a vector is not finite.
    ImportError
        If narwhals is not installed; it comes with `ssept_ext[data]`.
    """
    known, items = model.known, id_list("items", items)
    assert known is not None
    found = similar_by_index(model, encode_ids(known.item_ids, items, "raise"), k)
    row, column = np.nonzero(found.items)
    return to_frame(
        {
            "item": take_rows(items, row, known.item_ids),
            "similar_item": known.item_ids.decode(found.items[row, column]),
            "score": found.scores[row, column],
            "rank": column + 1,
        }
    )


def _encoded(
    known: KnownHistories,
    histories: Mapping[Any, Sequence[Any]],
    history_times: Mapping[Any, Sequence[Time]] | None,
) -> dict[Any, tuple[IntArray, IntArray | None]]:
    """Check the histories, replace raw item ids by the numbers of known items, and add times if there are any."""
    given = id_lists(histories)
    check_types(known.user_ids, given)
    times = {} if history_times is None else times_of(history_times, given)
    encoded = zip(given, encode_items(known, given.values(), "events"), strict=True)
    return {
        user: (items[items != 0], times[user][items != 0] if user in times else None)
        for user, items in encoded
    }


def _most_popular(known: KnownHistories, catalogue: IntArray | None, k: int) -> IntArray:
    """Return the (k,) items with the most events, most popular first; ties are ordered by ascending index."""
    items = np.arange(1, len(known.popularity)) if catalogue is None else np.unique(catalogue)
    return items[np.argsort(-known.popularity[items], kind="stable")[:k]]


_NONE = np.zeros(0, np.int64)
