"""The best items for each user, and the items most similar to an item, by index of the embedding tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, check_ids
from ssept_ext.data.raw_ids import id_list
from ssept_ext.data.times import Time
from ssept_ext.network.identity import check_ids_of
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.ranking.catalogue import Catalogue, SeenItems, encode_groups, score_blocks, scoring
from ssept_ext.ranking.top_k import TopK
from ssept_ext.serving.requests import (
    CANDIDATES,
    check_indices,
    id_lists,
    requested_at,
    times_of,
    times_to_ask_at,
)
from ssept_ext.utils.checks import check_at_least


class Recommendations(NamedTuple):
    """The k best items of each of n users, best first; ties are ordered by ascending id."""

    items: IntArray
    """(n, k) item ids; 0 where fewer than k items were left."""
    scores: NDArray[np.floating]
    """(n, k) float32 or wider: the scores of `predict`, up to rounding; -inf where there is no item."""


def recommend_by_index(
    model: SequentialRecommender,
    histories: SASRecDataSet | Mapping[int, Sequence[int]],
    users: Sequence[int] | None = None,
    k: int = 10,
    *,
    candidates: Collection[int] | None = None,
    exclude_seen: bool = True,
    batch_size: int = 256,
    at: Time | Sequence[Time] | None = None,
    history_times: Mapping[int, Sequence[Time]] | None = None,
) -> Recommendations:
    """Score all items 1..item_num as each user's next item and return the k best.

    Scores are computed in blocks of 16 MiB, so that memory does not depend on the number of users or items.

    Parameters
    ----------
    histories
        User id to item ids, oldest first, or a data set, of which all events are used, including held-out ones.
    users
        Users to recommend to, each with a history; None for all of `histories`, in its order.
    k
        Number of items per user; fewer if there are fewer items or candidates.
    candidates
        Items to choose from, the same for all users; None for all.
    exclude_seen
        Whether to leave out the items of the user's history.
    batch_size
        Users per forward pass.
    at
        For a model with `time_bias`: when the next event will be, for all users or for each, in the unit of the times
        that it was trained on (datetimes are seconds since 1970, in UTC). By default, a user's newest time plus the
        median time between the user's events.
    history_times
        For such a model: user id to the times of the user's events, oldest first, unless `histories` is a data set.

    Raises
    ------
    TypeError
        If an argument is not a sequence or mapping of ids or times; names it.
    ValueError
        If a user has no history, an id is not an integer from 1, `candidates` is empty, `k` or `batch_size` is below 1,
        a score is not finite, times are missing, or `at` is before a user's newest event.
    IndexError
        If an id is outside the model's table; names the id and the size of the table.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> found = recommend_by_index(model, {1: [3, 5], 2: [7]}, k=2, candidates=[3, 4, 5])
    >>> found.items.shape, found.items[0].tolist()  # user 1 has seen 3 and 5
    ((2, 2), [4, 0])
    """
    if isinstance(histories, SASRecDataSet):
        check_ids_of(model, histories)
    asked = _histories_of(histories, users, history_times)
    when = requested_at(at, len(asked.users))
    check_indices(model, "user", asked.users)
    check_indices(model, "item", asked.items)
    catalogue = None
    if candidates is not None:
        catalogue = check_indices(model, "item", id_list(CANDIDATES, candidates, in_order=False))
    return rank_catalogue(model, asked, k, catalogue, exclude_seen, batch_size, when)


def rank_catalogue(
    model: SequentialRecommender,
    asked: Histories,
    k: int,
    catalogue: IntArray | None,
    exclude_seen: bool,
    batch_size: int,
    at: IntArray | None,
) -> Recommendations:
    """Return the k best items for each history; none may be empty. User 0 is an unknown user."""
    check_at_least("k", k, 1)
    check_at_least("batch_size", batch_size, 1)
    at = times_to_ask_at(model, asked, at)
    num_items, seen_items = model.item_num, asked
    if catalogue is not None:
        if not len(catalogue):
            raise ValueError("candidates must hold an item that the model knows")
        catalogue = np.unique(np.append(0, catalogue))
        num_items, seen_items = len(catalogue) - 1, _within(asked, catalogue)
    k = min(k, num_items)
    found = []
    if is_sharded(model):
        distributed.check_same(k=k, batch_size=batch_size, histories=asked.digest())
    with scoring(model):
        if catalogue is None:
            ranked = Catalogue.of(model, num_items)
        else:
            ids = torch.from_numpy(catalogue).to(model.device)
            table, numbers = model.item_rows(ids)
            ranked = Catalogue(model.scores.vectors(table[numbers]))
        for rows, queries, user_parts in encode_groups(model, asked, batch_size, at):
            seen = SeenItems(seen_items, rows, model.device) if exclude_seen else None
            top = TopK(len(queries), k, like=queries)
            for first, scores in ranked.blocks(queries):
                if seen is not None:
                    seen.hide(first, scores)
                top.update(first, scores)
            ranked.complete(top)
            top.scores += user_parts[:, None]
            found.append(top)
    items, scores_found = concatenated(found, k)
    return Recommendations(items if catalogue is None else catalogue[items], scores_found)


def _within(histories: Histories, catalogue: IntArray) -> Histories:
    """Keep the events whose item is in `catalogue`, which is sorted, and replace each item by its place there."""
    place = np.searchsorted(catalogue, histories.items)
    kept = catalogue[np.minimum(place, len(catalogue) - 1)] == histories.items
    offsets = np.append(0, np.cumsum(kept))[histories.offsets]
    return Histories(histories.users, offsets, place[kept])


def concatenated(found: Sequence[TopK], k: int) -> Recommendations:
    """Concatenate the results of consecutive groups of rows."""
    if not found:
        return Recommendations(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Recommendations(
        np.concatenate([top.items.cpu().numpy() for top in found]),
        np.concatenate([top.scores.cpu().numpy() for top in found]),
    )


def _histories_of(
    events: SASRecDataSet | Mapping[int, Sequence[int]],
    users: Sequence[int] | None,
    history_times: Mapping[int, Sequence[Time]] | None,
) -> Histories:
    """Return the histories of `users` in the given order; None for all. Users may be repeated."""
    asked = None if users is None else check_ids(id_list("users", users), "user")
    if isinstance(events, SASRecDataSet):
        if history_times is not None:
            raise ValueError("history_times must be None where histories are a data set")
        num_users = events.num_users
        found = events.histories("all", asked)
    else:
        lists = id_lists(events, None if asked is None else asked.tolist())
        found = Histories.from_mapping(lists)
        if history_times is not None:
            times = [*times_of(history_times, lists).values(), np.zeros(0, np.int64)]
            found = found._replace(times=np.concatenate(times))
        num_users, found = len(events), found if asked is None else found.of(asked)
    empty = np.diff(found.offsets) == 0
    if empty.any():
        raise ValueError(
            f"user {found.users[empty][0]} has no events in histories (of {num_users} users)"
        )
    return found


ITEM_BLOCK = 1024
"""Number of items whose neighbours are searched together."""


def similar_by_index(
    model: SequentialRecommender, items: Sequence[int] | IntArray, k: int = 10
) -> Recommendations:
    """Return the k items with the highest cosine similarity to each of `items`, without the item itself.

    Parameters
    ----------
    items
        (n,) item ids.
    k
        Number of similar items; at most item_num - 1 are returned.

    Returns
    -------
    Recommendations
        (n, k) items, and their cosines as scores, float32 or wider. The cosine with a zero vector is 0.

    Raises
    ------
    ValueError
        If an id is not an integer from 1, `k` is below 1, or a vector is not finite.
    IndexError
        If an id is outside the model's table; names the id and the size of the table.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> similar_by_index(model, [3, 5], k=2).items.shape
    (2, 2)
    """
    check_at_least("k", k, 1)
    asked = check_indices(model, "item", id_list("items", items))
    k = min(k, model.item_num - 1)
    with scoring(model):
        weight = model.item_table()
        scale = _inverse_norms(weight)
        found = [
            _most_similar(weight, scale, torch.from_numpy(part).to(weight.device), k)
            for part in np.split(asked, range(ITEM_BLOCK, len(asked), ITEM_BLOCK))
            if len(part)
        ]
    return concatenated(found, k)


def _most_similar(weight: Tensor, scale: Tensor, items: Tensor, k: int) -> TopK:
    queries = weight[items].to(scale.dtype) * scale[items, None]
    top = TopK(len(items), k, like=queries)
    for first, scores in score_blocks(queries, weight):
        count = min(scores.shape[1], len(weight) - first)
        # In place, which `score_blocks` allows.
        scores[:, :count] *= scale[first : first + count]
        itself = items - first
        inside = (itself >= 0) & (itself < count)
        scores[inside.nonzero()[:, 0], itself[inside]] = -math.inf
        top.update(first, scores)
    top.check_finite()
    return top


def _inverse_norms(weight: Tensor) -> Tensor:
    """Return (I + 1,) inverse norms, float32 or wider; 1 for zero vectors."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=wide)
    return norms.where(norms != 0, 1).reciprocal()
