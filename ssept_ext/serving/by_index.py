"""The best items for each user, and the items most similar to an item, by index of the embedding tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, check_ids
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ranking.catalogue import SeenItems, encode_groups, score_blocks, scoring
from ssept_ext.ranking.top_k import TopK
from ssept_ext.utils.checks import check_at_least


class Recommendations(NamedTuple):
    """For each of n users their k best items, best first; equal scores by rising id."""

    items: IntArray
    """(n, k) ids; 0 where fewer than k items were left."""
    scores: NDArray[np.floating]
    """(n, k) float32 or wider, those of `predict` to rounding; -inf where there is no item."""


def recommend_by_index(
    model: SequentialRecommender,
    histories: SASRecDataSet | Mapping[int, Sequence[int]],
    users: Sequence[int] | None = None,
    k: int = 10,
    *,
    candidates: Collection[int] | None = None,
    exclude_seen: bool = True,
    batch_size: int = 256,
) -> Recommendations:
    """Rank all items of 1..item_num as each user's next and return the best k.

    The memory is bounded: scores are computed and thrown away in blocks of 16 MiB, whatever the
    number of users and items.

    Parameters
    ----------
    histories
        User id to item ids, oldest first: in service what a user did until now, which no
        data set holds. Of a data set all events are used, held-out ones as well.
    users
        Whom to recommend to, each with a history; None for all of `histories`, in its order.
    k
        As many columns are returned, or as many as there are items or candidates.
    candidates
        The items to choose from; None for all.
    exclude_seen
        Never recommend an item of the user's history.
    batch_size
        Users that are encoded at a time.

    Raises
    ------
    ValueError
        If a user has no history, an id is no integer from 1, there is no candidate, `k` or
        `batch_size` is below 1, or a score is not finite.
    IndexError
        If an id is outside the model's table; names id and table size.
    """
    asked = _histories_of(histories, users)
    check_inside("user", asked.users, getattr(model, "user_num", None))  # SASREC has no users
    check_inside("item", asked.items, model.item_num)
    catalogue = None
    if candidates is not None:
        catalogue = check_ids(candidates, "item")
        check_inside("item", catalogue, model.item_num)
    return rank_catalogue(model, asked, k, catalogue, exclude_seen, batch_size)


def rank_catalogue(
    model: SequentialRecommender,
    asked: Histories,
    k: int,
    catalogue: IntArray | None,
    exclude_seen: bool,
    batch_size: int,
) -> Recommendations:
    """The best k items for histories, none empty; user 0 is an unknown one."""
    check_at_least("k", k, 1)
    check_at_least("batch_size", batch_size, 1)
    item_weight, seen_items = model.item_embedding_layer.weight, asked
    if catalogue is not None:
        if not len(catalogue):
            raise ValueError("candidates must hold an item that the model knows")
        catalogue = np.unique(np.append(0, catalogue))
        item_weight = item_weight[torch.from_numpy(catalogue).to(model.device)]
        seen_items = _within(asked, catalogue)
    k = min(k, len(item_weight) - 1)
    found = []
    with scoring(model):
        for rows, queries, user_parts in encode_groups(model, asked, batch_size):
            seen = SeenItems(seen_items, rows, model.device) if exclude_seen else None
            top = TopK(len(queries), k, like=queries)
            for first, scores in score_blocks(queries, item_weight):
                if seen is not None:
                    seen.hide(first, scores)
                top.update(first, scores)
            top.check_finite()
            top.scores += user_parts[:, None]
            found.append(top)
    items, scores_found = concatenated(found, k)
    return Recommendations(items if catalogue is None else catalogue[items], scores_found)


def _within(histories: Histories, catalogue: IntArray) -> Histories:
    """Events of items in `catalogue` (sorted), which become their places in it."""
    place = np.searchsorted(catalogue, histories.items)
    kept = catalogue[np.minimum(place, len(catalogue) - 1)] == histories.items
    offsets = np.append(0, np.cumsum(kept))[histories.offsets]
    return Histories(histories.users, offsets, place[kept])


def concatenated(found: Sequence[TopK], k: int) -> Recommendations:
    if not found:
        return Recommendations(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Recommendations(
        np.concatenate([top.items.cpu().numpy() for top in found]),
        np.concatenate([top.scores.cpu().numpy() for top in found]),
    )


def _histories_of(
    events: SASRecDataSet | Mapping[int, Sequence[int]], users: Sequence[int] | None
) -> Histories:
    """The histories of `users` in their order, None for all; a user may be asked for twice."""
    if isinstance(events, SASRecDataSet):
        num_users = events.num_users
        found = events.histories("all", None if users is None else check_ids(users, "user"))
    else:
        num_users = len(events)
        asked = list(events) if users is None else users
        found = Histories.from_mapping({user: events.get(user, ()) for user in asked})
        found = found.of(asked)
    empty = np.diff(found.offsets) == 0
    if empty.any():
        raise ValueError(
            f"user {found.users[empty][0]} has no events in histories (of {num_users} users)"
        )
    return found


def check_inside(name: str, ids: IntArray, largest: int | None) -> None:
    if largest is not None and ids.size and ids.max() > largest:
        raise IndexError(
            f"{name} has id {ids.max()}, outside the model's table of {largest + 1} rows (0..{largest})"
        )


ITEM_BLOCK = 1024


def similar_by_index(
    model: SequentialRecommender, items: Sequence[int], k: int = 10
) -> Recommendations:
    """Rank all other items by the cosine of their vectors with each of `items`, in bounded memory.

    Parameters
    ----------
    items
        (n,) item ids.
    k
        As many columns are returned, or item_num - 1.

    Returns
    -------
    Recommendations
        (n, k) items and their cosines, float32 or wider; 0 with a vector of zeros.

    Raises
    ------
    ValueError
        If an id is no integer from 1, `k` is below 1, or a vector is not finite.
    IndexError
        If an id is outside the model's table; names id and table size.
    """
    check_at_least("k", k, 1)
    asked = check_ids(items, "item")
    check_inside("item", asked, model.item_num)
    k = min(k, model.item_num - 1)
    with scoring(model):
        weight = model.item_embedding_layer.weight
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
        scores[:, :count] *= scale[first : first + count]
        itself = items - first
        inside = (itself >= 0) & (itself < count)
        scores[inside.nonzero()[:, 0], itself[inside]] = -math.inf
        top.update(first, scores)
    top.check_finite()
    return top


def _inverse_norms(weight: Tensor) -> Tensor:
    """(I + 1,) float32 or wider; 1 for vectors of zeros."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=wide)
    return norms.where(norms != 0, 1).reciprocal()
