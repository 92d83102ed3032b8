"""Answers to many requests at once are those to each alone."""

import pytest

pytest.importorskip("fastapi")

from support.served import fitted

from ssept_ext.service.answers import recommend_all
from ssept_ext.service.schemas import RecommendRequest

ASKED = [
    {"user": "anna"},
    {"user": "bert", "k": 3},
    {"user": "anna", "history": ["i9"]},
    {"user": "nobody"},
    {"user": 5},
    {"history": ["i1", "i2"], "exclude_seen": False},
    {"user": "cleo", "candidates": ["i1", "i2"]},
    {"user": "dora", "candidates": ["gone"]},
    {"user": "dora"},
]


def test_each_request_of_a_batch_is_answered_as_alone():
    model = fitted()
    requests = [RecommendRequest(**asked) for asked in ASKED]

    together = recommend_all(model, requests)

    alone = [recommend_all(model, [request])[0] for request in requests]
    assert list(map(repr, together)) == list(map(repr, alone))
    assert [type(answer).__name__ for answer in together].count("RecommendAnswer") == 7
