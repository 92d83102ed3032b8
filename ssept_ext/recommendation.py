"""The best items of the whole catalogue for each user, and those most like an item.

Functions that end in `_raw` speak raw ids and return data frames: of pandas, Polars or PyArrow, the first that is
installed, made through narwhals.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data import Histories, IntArray, SASRecDataSet, to_csr
from ssept_ext.evaluation import check_at_least
from ssept_ext.id_map import IdMap, RawId
from ssept_ext.known_histories import KnownHistories
from ssept_ext.optional import require
from ssept_ext.ranking import SeenItems, TopK, encode_groups, score_blocks, scoring

if TYPE_CHECKING:
    from ssept_ext.model import SASREC

ITEMS_AT_A_TIME = 1024
_FRAMES = ("pandas", "polars", "pyarrow")
_ACCEPTED = {"int64": (int, np.integer), "str": str, "uuid": UUID}


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
    candidates: Collection[int] | None = None,
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
    k : as many columns are returned, or as many as there are items or candidates
    candidates : the items to choose from; None for all
    exclude_seen : never recommend an item of the user's history
    batch_size : users that are encoded at a time

    Raises
    ------
    ValueError
        If a user has no history, an id is no integer from 1, there is no candidate, `k` or
        `batch_size` is below 1, or a score is not finite.
    IndexError
        If an id is outside the model's table; names id and table size.
    """
    events = histories.User if isinstance(histories, SASRecDataSet) else histories
    asked = _histories_of(events, list(events) if users is None else users)
    _check_inside("user", asked.users, getattr(model, "user_num", None))  # SASREC has no users
    _check_inside("item", asked.items, model.item_num)
    catalogue = None
    if candidates is not None:
        catalogue = to_csr({1: list(candidates)}).items
        _check_inside("item", catalogue, model.item_num)
    return _rank(model, asked, k, catalogue, exclude_seen, batch_size)


def recommend_raw(
    model: SASREC,
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
    histories : raw user id to raw item ids, oldest first, to be used instead of what the model knows
        of these users. Events of items that it does not know are dropped, with a warning that
        counts them.
    users : whom to recommend to; None for all of `histories`, or else for all users the model knows
    k : rows for each user, fewer where fewer items are left
    candidates : the items to choose from; unknown ones are dropped as above; None for all
    with_scores : False leaves the column out
    exclude_seen, batch_size : as for `recommend`

    Returns
    -------
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
    known = _known(model)
    catalogue = None
    if candidates is not None:
        catalogue = _encode_items(known, {"candidates": list(candidates)}, "candidates")[0]
    live = {}
    if histories is not None:
        live = dict(zip(histories, _encode_items(known, histories, "events"), strict=True))
    if users is None:
        users = known.user_ids.raw.tolist() if histories is None else list(histories)
    _check_type(known.user_ids, users)
    numbers = known.user_ids.encode(users, unknown="zero")
    events = [
        live[user] if user in live else known.of(number)
        for user, number in zip(users, numbers.tolist(), strict=True)
    ]
    lengths = np.array([len(row) for row in events], np.int64)
    warm = lengths > 0
    offsets = np.cumsum(np.append(0, lengths[warm]))
    asked = Histories(numbers[warm], offsets, np.concatenate([*events, np.zeros(0, np.int64)]))
    found = _rank(model, asked, k, catalogue, exclude_seen, batch_size)

    items = np.empty((len(users), found.items.shape[1]), np.int64)
    scores = np.full(items.shape, math.nan, found.scores.dtype)
    items[warm], scores[warm] = found
    if not warm.all():
        items[~warm] = _most_popular(known, catalogue, items.shape[1])
    row, column = np.nonzero(items)
    answer = {
        "user": _of_rows(users, row),
        "item": known.item_ids.decode(items[row, column]),
        "score": scores[row, column],
        "rank": column + 1,
    }
    if not with_scores:
        del answer["score"]
    return _to_frame(answer)


def similar_items(model: SASREC, items: Sequence[int], k: int = 10) -> Recommendations:
    """Rank all other items by the cosine of their vectors with each of `items`, in bounded memory.

    Parameters
    ----------
    items : (n,) item ids
    k : as many columns are returned, or item_num - 1

    Returns
    -------
    (n, k) items and their cosines, float32 or wider; 0 with a vector of zeros

    Raises
    ------
    ValueError
        If an id is no integer from 1, `k` is below 1, or a vector is not finite.
    IndexError
        If an id is outside the model's table; names id and table size.
    """
    check_at_least("k", k, 1)
    asked = to_csr({1: items}).items
    _check_inside("item", asked, model.item_num)
    k = min(k, model.item_num - 1)
    with scoring(model):
        weight = model.item_embedding_layer.weight
        scale = _inverse_norms(weight)
        found = [
            _most_similar(weight, scale, torch.from_numpy(part).to(weight.device), k)
            for part in np.split(asked, range(ITEMS_AT_A_TIME, len(asked), ITEMS_AT_A_TIME))
            if len(part)
        ]
    return _concatenated(found, k)


def similar_items_raw(model: SASREC, items: Sequence[Any], k: int = 10) -> Any:
    """As `similar_items`, on raw ids; a model that knows raw ids has it as `similar_items`.

    Returns
    -------
    A data frame with the columns item, similar_item, score (the cosine) and rank (from 1).

    Raises
    ------
    KeyError, TypeError
        If an item is unknown, or an id is not of the type that the model was trained with; names it.
    ValueError, ImportError
        As `recommend_raw`.
    """
    known = _known(model)
    _check_type(known.item_ids, items)
    found = similar_items(model, known.item_ids.encode(items).tolist(), k)
    row, column = np.nonzero(found.items)
    return _to_frame(
        {
            "item": _of_rows(items, row),
            "similar_item": known.item_ids.decode(found.items[row, column]),
            "score": found.scores[row, column],
            "rank": column + 1,
        }
    )


def encode_history(model: SASREC, history: Sequence[Any]) -> IntArray:
    """Numbers of a history's items, raw ids if the model knows them; unknown ones are dropped with a warning.

    Raises as `recommend` and `recommend_raw`.
    """
    if model.known is not None:
        return _encode_items(model.known, {"history": history}, "events")[0]
    numbers = to_csr({1: history}).items
    _check_inside("item", numbers, model.item_num)
    return numbers


def encode_user(model: SASREC, user: Any | None) -> int:
    """The number of a user, by raw id if the model knows these; 0 for None and for an unknown one."""
    if user is None:
        return 0
    if model.known is not None:
        _check_type(model.known.user_ids, [user])
        return int(model.known.user_ids.encode([user], unknown="zero")[0])
    numbers = to_csr({user: []}).users
    _check_inside("user", numbers, getattr(model, "user_num", None))
    return int(numbers[0])


def _rank(
    model: SASREC,
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
    items, scores_found = _concatenated(found, k)
    return Recommendations(items if catalogue is None else catalogue[items], scores_found)


def _within(histories: Histories, catalogue: IntArray) -> Histories:
    """Events of items in `catalogue` (sorted), which become their places in it."""
    place = np.searchsorted(catalogue, histories.items)
    kept = catalogue[np.minimum(place, len(catalogue) - 1)] == histories.items
    offsets = np.append(0, np.cumsum(kept))[histories.offsets]
    return Histories(histories.users, offsets, place[kept])


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


def _concatenated(found: Sequence[TopK], k: int) -> Recommendations:
    if not found:
        return Recommendations(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Recommendations(
        np.concatenate([top.items.cpu().numpy() for top in found]),
        np.concatenate([top.scores.cpu().numpy() for top in found]),
    )


def _most_popular(known: KnownHistories, catalogue: IntArray | None, k: int) -> IntArray:
    """(k,) items with the most events, best first; equal ones by rising number."""
    items = np.arange(1, len(known.popularity)) if catalogue is None else np.unique(catalogue)
    return items[np.argsort(-known.popularity[items], kind="stable")[:k]]


def _known(model: SASREC) -> KnownHistories:
    if model.known is None:
        raise ValueError(
            f"the model knows no raw ids: {type(model).__name__}.fit makes one that does"
        )
    return model.known


def _encode_items(
    known: KnownHistories, histories: Mapping[Any, Sequence[Any]], what: str
) -> list[IntArray]:
    """Numbers of the items of each history; unknown ones are dropped and counted in a warning."""
    encoded = []
    for items in histories.values():
        _check_type(known.item_ids, items)
        encoded.append(known.item_ids.encode(items, unknown="zero"))
    num_all = sum(map(len, encoded))
    kept = [numbers[numbers != 0] for numbers in encoded]
    if unknown := num_all - sum(map(len, kept)):
        warnings.warn(
            f"dropped {unknown} of {num_all} {what}: their items are none of the "
            f"{len(known.item_ids)} that the model knows",
            stacklevel=4,
        )
    return kept


def _check_type(id_map: IdMap, ids: Sequence[RawId]) -> None:
    """Refuse ids of another type, which could only be unknown, and would look like new ones."""
    if isinstance(ids, str):
        raise TypeError(f"{id_map.noun}s must be a sequence of ids, got the string {ids!r}")
    for value in ids:
        if not isinstance(value, _ACCEPTED[id_map.type]):  # type: ignore[arg-type]
            raise TypeError(
                f"{id_map.noun} ids must be {id_map.type}, as in training, "
                f"got {value!r} of type {type(value).__name__}"
            )


def _of_rows(ids: Sequence[RawId], row: IntArray) -> NDArray[Any]:
    """`ids[row]` as they were given, whatever their type."""
    taken = np.empty(len(ids), object)
    taken[:] = list(ids)
    return taken[row]


def _to_frame(columns: dict[str, NDArray[Any]]) -> Any:
    """A data frame of the first library that is installed."""
    narwhals = require("narwhals", "data")
    backend = next((name for name in _FRAMES if find_spec(name)), _FRAMES[-1])
    lists = {name: values.tolist() for name, values in columns.items()}
    return narwhals.from_dict(lists, backend=backend).to_native()


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
