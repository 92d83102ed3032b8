"""Whatever is asked for, there is an answer of the right size, or an error that names the argument.

Ids of any type, requests of any size and shape, k of any size; a fixed budget of examples.
"""

import datetime
import uuid
import warnings
from functools import cache

import narwhals as nw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.factories import tiny_model
from support.raw_ids import SIZES, interactions, rows

from ssept_ext import SASREC, SSEPT

bounded = settings(max_examples=150, database=None)

NUM_USERS, NUM_ITEMS = 5, 20
MAKERS = {"str": str, "int64": int, "uuid": lambda x: uuid.UUID(int=x)}

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.integers(-(2**70), 2**70),
    st.just(datetime.date(2026, 1, 1)),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.integers(0, 3), st.integers(0, 3), max_size=2),
)
numbers = st.integers(-1, NUM_ITEMS + 2)
sizes = st.one_of(st.integers(-2, 30), st.sampled_from([2**31, 2**63, 10**30]), junk)


def columns(ids):
    """Ids in any kind of sequence, sometimes with junk among them, or junk instead."""
    plain = st.lists(ids, max_size=8)
    kinds = [
        list,
        tuple,
        set,
        iter,
        np.array,
        lambda x: np.array(x, object),
        lambda x: np.array([x]),
    ]
    return st.one_of(
        st.builds(lambda kind, given: kind(given), st.sampled_from(kinds), plain),
        st.lists(ids | junk, max_size=4),
        junk,
    )


def requests(users, items):
    """Arguments of `recommend`, of which each may be missing."""
    histories = st.dictionaries(users, columns(items), max_size=5)
    arguments = {
        "histories": histories | junk,
        "users": columns(users),
        "candidates": columns(items),
        "k": sizes,
        "batch_size": sizes,
        "exclude_seen": st.booleans() | junk,
    }
    return st.fixed_dictionaries({}, optional=arguments)


@cache
def model_of(kind, ids):
    """A model of 5 users and 20 items, with raw ids of a type or, for None, without."""
    if ids is None:
        return tiny_model(kind, item_num=NUM_ITEMS, user_num=NUM_USERS)
    make = MAKERS[ids]
    histories = {
        make(u): [make(i) for i in range(u, NUM_ITEMS, u)] for u in range(1, NUM_USERS + 1)
    }
    return kind.fit(interactions(histories), **SIZES, num_epochs=1)


def answer(call, *arguments, **named):
    """The answer, or None where an argument is named as wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return call(*arguments, **named)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            message = str(error)
    parts = ("user", "item", "histor", "candidates", "k ", "batch_size", "exclude_seen")
    assert any(part in message for part in parts), message
    return None


@pytest.mark.parametrize("kind", [SSEPT, SASREC])
@pytest.mark.parametrize("ids", [None, *MAKERS])
def test_recommend_answers_or_names_the_argument(kind, ids):
    model, make = model_of(kind, ids), MAKERS.get(ids, int)
    # A UUID cannot be negative.
    known = (numbers if ids != "uuid" else numbers.map(abs)).map(make)

    @bounded
    @given(requests(known, known))
    def check(arguments):
        found = answer(model.recommend, **arguments)
        if ids is None:
            assert found is None or (found.items.shape == found.scores.shape)
        elif found is not None:
            frame = nw.from_native(found)
            assert frame.columns == ["user", "item", "score", "rank"]
            assert set(frame["item"].to_list()) <= set(model.known.item_ids.raw.tolist())

    check()


@pytest.mark.parametrize("ids", [None, *MAKERS])
def test_similar_items_and_vectors_answer_or_name_the_argument(ids):
    model, make = model_of(SSEPT, ids), MAKERS.get(ids, int)
    known = numbers.map(abs).map(make)

    @bounded
    @given(columns(known), columns(known), sizes, known | junk)
    def check(items, history, k, user):
        found = answer(model.similar_items, items, k)
        if found is not None and ids is None:
            assert found.items.shape[1] == min(k, NUM_ITEMS - 1)
        elif found is not None:
            assert {row[3] for row in rows(found)} <= set(range(1, NUM_ITEMS))
        state = answer(model.user_state, history, user)
        assert state is None or np.isfinite(model.item_vectors() @ state).all()

    check()
