"""The best items for each user, and the items most similar to an item, by index of the embedding tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssept_ext import distributed
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, check_ids
from ssept_ext.data.raw_ids import id_list
from ssept_ext.data.times import Time
from ssept_ext.network.identity import check_ids_of
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.ranking.catalogue import Best, Catalogue, encode_groups, inverse_norms, scoring
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

    Memory does not depend on the number of users or items.

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
    num_items, ids = model.item_num, None
    if catalogue is not None:
        if not len(catalogue):
            raise ValueError("candidates must hold an item that the model knows")
        catalogue = np.unique(catalogue)
        num_items, ids = len(catalogue), torch.from_numpy(catalogue).to(model.device)
    k = min(k, num_items)
    found = []
    if is_sharded(model):
        distributed.check_same(k=k, batch_size=batch_size, histories=asked.digest())
    with scoring(model):
        ranked = Catalogue.of(model, model.item_num)
        for rows, queries, user_parts in encode_groups(model, asked, batch_size, at):
            seen = asked.part(rows) if exclude_seen else None
            items, scores = ranked.best(queries, k, seen, ids)
            found.append(Best(items, scores + user_parts[:, None]))
    return concatenated(found, k)


def concatenated(found: Sequence[Best], k: int) -> Recommendations:
    """Concatenate the results of consecutive groups of rows."""
    if not found:
        return Recommendations(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Recommendations(
        np.concatenate([best.items.cpu().numpy() for best in found]),
        np.concatenate([best.scores.cpu().numpy() for best in found]),
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


def similar_by_index(
    model: SequentialRecommender, items: Sequence[int] | IntArray, k: int = 10
) -> Recommendations:
    """Return the k items with the highest cosine similarity to each of `items`, without the item itself.

    Their vectors are those by which they are scored, so that similar items are recommended to the same users.

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
        rows = model.output_table()[torch.from_numpy(asked).to(model.device)]
        scale = inverse_norms(rows)
        queries = rows.to(scale.dtype) * scale[:, None]
        itself = Histories(asked, np.arange(len(asked) + 1), asked)
        best = Catalogue.of_cosines(model).best(queries, k, itself)
    return concatenated([best], k)
