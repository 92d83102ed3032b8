"""Answers to requests by raw id, computed for many requests at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.raw_ids import RawId
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.service.schemas import (
    RecommendAnswer,
    RecommendRequest,
    ScoredItem,
    SimilarAnswer,
    SimilarRequest,
)
from ssept_ext.serving.by_index import similar_by_index
from ssept_ext.serving.by_raw_id import rank_events
from ssept_ext.serving.requests import encode_ids, requested_at, times_of_events

RequestError = (ValueError, TypeError, KeyError, IndexError)
"""What is raised where a request does not fit the model."""
Events = tuple[IntArray, IntArray | None]


@dataclass(frozen=True)
class _Question:
    """A request in the indices of a model."""

    user: int
    events: Events
    catalogue: IntArray | None
    at: IntArray | None
    unknown_items: int
    request: RecommendRequest

    @property
    def group(self) -> tuple[object, ...]:
        """Questions with equal ones can be answered together."""
        catalogue = None if self.catalogue is None else self.catalogue.tobytes()
        return self.request.k, self.request.exclude_seen, catalogue, self.at is None


def recommend_all(
    model: SequentialRecommender, requests: Sequence[RecommendRequest]
) -> list[RecommendAnswer | Exception]:
    """Answer requests, each with the error of its own if it does not fit the model.

    Users, histories and items are as in `ssept_ext.serving.by_raw_id.recommend_by_raw_id`. A model without raw ids
    takes indices, of which those outside its tables are unknown.
    """
    answers: dict[int, RecommendAnswer | Exception] = {}
    groups: dict[tuple[object, ...], list[tuple[int, _Question]]] = defaultdict(list)
    for place, request in enumerate(requests):
        question = _try_encode(model, request)
        if isinstance(question, Exception):
            answers[place] = question
        else:
            groups[question.group].append((place, question))
    for group in groups.values():
        places, questions = zip(*group, strict=True)
        answers.update(zip(places, _answer(model, questions), strict=True))
    return [answers[place] for place in range(len(requests))]


def similar(model: SequentialRecommender, request: SimilarRequest) -> SimilarAnswer:
    """Return the items that are most similar to one; a KeyError if the model does not know that."""
    (number,) = _numbers(model, "item", [request.item])
    if number == 0:
        raise KeyError("item is unknown to the model")
    items, scores = similar_by_index(model, [int(number)], request.k)
    return SimilarAnswer(items=_scored(model, items[0], scores[0]))


def _try_encode(model: SequentialRecommender, request: RecommendRequest) -> _Question | Exception:
    try:
        return _encode(model, request)
    except RequestError as error:
        return error


def _encode(model: SequentialRecommender, request: RecommendRequest) -> _Question:
    user, unknown = 0, 0
    if request.user is not None:
        (user,) = _numbers(model, "user", [request.user]).tolist()
    if request.history is not None:
        items = _numbers(model, "item", request.history)
        times = None
        if request.history_times is not None:
            times = times_of_events("history_times", request.history_times, len(items))
            times = times[items > 0]
        unknown = int(np.count_nonzero(items == 0))
        events: Events = items[items > 0], times
    elif request.history_times is not None:
        raise ValueError("history_times must come with a history")
    elif model.known is None:
        raise ValueError("history must be given, because this model stores none")
    else:
        events = model.known.events(user)
    catalogue = None
    if request.candidates is not None:
        catalogue = _numbers(model, "item", request.candidates)
        unknown += int(np.count_nonzero(catalogue == 0))
        catalogue = np.unique(catalogue[catalogue > 0])
    return _Question(user, events, catalogue, requested_at(request.at, 1), unknown, request)


def _answer(
    model: SequentialRecommender, questions: Sequence[_Question]
) -> list[RecommendAnswer | Exception]:
    first = questions[0]
    at = None if first.at is None else np.concatenate([q.at for q in questions if q.at is not None])
    try:
        found = rank_events(
            model,
            np.array([question.user for question in questions], np.int64),
            [question.events for question in questions],
            first.request.k,
            first.catalogue,
            first.request.exclude_seen,
            at=at,
        )
    except RequestError as error:
        if len(questions) == 1:
            return [error]
        return [answer for question in questions for answer in _answer(model, [question])]
    return [
        RecommendAnswer(
            items=_scored(model, items, scores),
            known_user=question.user > 0,
            unknown_items=question.unknown_items,
        )
        for question, items, scores in zip(questions, *found, strict=True)
    ]


def _scored(
    model: SequentialRecommender, items: IntArray, scores: Iterable[float]
) -> list[ScoredItem]:
    found = items[items > 0]
    raw = found.tolist() if model.known is None else model.known.item_ids.decode(found).tolist()
    return [
        ScoredItem(
            item=str(item) if isinstance(item, UUID) else item,
            score=float(score) if math.isfinite(score) else None,
        )
        for item, score in zip(raw, scores, strict=False)
    ]


def _numbers(model: SequentialRecommender, noun: str, ids: Sequence[RawId]) -> IntArray:
    """The model's indices of users or items, 0 for unknown ones; a TypeError if ids are of another type."""
    if model.known is not None:
        id_map: IdMap = getattr(model.known, f"{noun}_ids")
        return encode_ids(id_map, _as_uuids(ids) if id_map.type == "uuid" else ids)
    if not all(isinstance(x, int) for x in ids):
        raise TypeError(f"{noun} ids must be integers, as in training")
    largest = getattr(model, f"{noun}_num", 0)  # SASREC has no users
    return np.array([x if 1 <= int(x) <= largest else 0 for x in ids], np.int64)


def _as_uuids(ids: Iterable[RawId]) -> list[RawId]:
    try:
        return [UUID(x) if isinstance(x, str) else x for x in ids]
    except ValueError:
        raise TypeError("ids must be UUIDs, as in training") from None
