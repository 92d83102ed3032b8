"""The best items of the whole catalogue for each user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data import Histories, IntArray, SASRecDataSet, to_csr
from ssept_ext.evaluation import check_at_least
from ssept_ext.ranking import SeenItems, TopK, encode_groups, score_blocks, scoring

if TYPE_CHECKING:
    from ssept_ext.model import SASREC


class Recommendations(NamedTuple):
    """For each of n users their k best items, best first; equal scores by rising id."""

    items: IntArray
    """(n, k) ids; 0 where fewer than k items were left."""
    scores: NDArray[np.floating]
    """(n, k) float32 or wider, those of `predict` to rounding; -inf where there is no item."""


def recommend(
    model: SASREC,
    histories: SASRecDataSet | Mapping[int, Sequence[int]],
    users: Sequence[int] | None = None,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    batch_size: int = 256,
) -> Recommendations:
    """Rank all items of 1..item_num as each user's next and return the best k.

    The memory is bounded: scores are computed and thrown away in blocks of 16 MiB, whatever the
    number of users and items.

    Parameters
    ----------
    histories : user id to item ids, oldest first: in service what a user did until now, which no
        data set holds. Of a data set all events are used, held-out ones as well.
    users : whom to recommend to, each with a history; None for all of `histories`, in its order
    k : min(k, item_num) columns are returned
    exclude_seen : never recommend an item of the user's history
    batch_size : users that are encoded at a time

    Raises
    ------
    ValueError
        If a user has no history, an id is no integer from 1, `k` or `batch_size` is below 1, or a
        score is not finite.
    IndexError
        If an id is outside the model's table; names id and table size.
    """
    check_at_least("k", k, 1)
    check_at_least("batch_size", batch_size, 1)
    events = histories.User if isinstance(histories, SASRecDataSet) else histories
    asked = _histories_of(events, list(events) if users is None else users)
    _check_inside("user", asked.users, getattr(model, "user_num", None))  # SASREC has no users
    _check_inside("item", asked.items, model.item_num)

    k = min(k, model.item_num)
    found = []
    with scoring(model):
        item_weight = model.item_embedding_layer.weight
        for rows, queries, user_parts in encode_groups(model, asked, batch_size):
            seen = SeenItems(asked, rows, model.device) if exclude_seen else None
            top = TopK(len(queries), k, like=queries)
            for first, scores in score_blocks(queries, item_weight):
                if seen is not None:
                    seen.hide(first, scores)
                top.update(first, scores)
            top.check_finite()
            found.append(
                (top.items.cpu().numpy(), (top.scores + user_parts[:, None]).cpu().numpy())
            )
    if not found:
        return Recommendations(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    items, scores_found = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Recommendations(items, scores_found)


def _histories_of(events: Mapping[int, Sequence[int]], users: Sequence[int]) -> Histories:
    """The histories of `users` in their order; a user may be asked for twice."""
    for user in users:
        if not len(events.get(user, ())):
            raise ValueError(f"user {user} has no events in histories (of {len(events)} users)")
    distinct = to_csr({user: events[user] for user in users})
    if len(distinct.users) == len(users):
        return distinct
    place = {user: row for row, user in enumerate(distinct.users.tolist())}
    rows = [place[int(user)] for user in users]
    bounds = distinct.offsets.tolist()
    items = [distinct.items[bounds[row] : bounds[row + 1]] for row in rows]
    offsets = np.cumsum([0, *map(len, items)])
    return Histories(distinct.users[rows], offsets, np.concatenate(items))


def _check_inside(name: str, ids: IntArray, largest: int | None) -> None:
    if largest is not None and ids.size and ids.max() > largest:
        raise IndexError(
            f"{name} has id {ids.max()}, outside the model's table of {largest + 1} rows (0..{largest})"
        )
