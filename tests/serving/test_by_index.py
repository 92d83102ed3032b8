"""Recommendations are the best of `predict` over the whole catalogue, in bounded memory."""

import math

import numpy as np
import pytest
import torch
from support.factories import perturbed, tiny_model

from ssept_ext import SASREC, SSEPT, SASRecDataSet
from ssept_ext.ranking import catalogue

NUM_ITEMS = 300
HISTORIES = {
    2: [5, 9, 5, 300],
    5: [1],
    3: [*range(1, 298)],  # 3 items are left
    9: [17, 4, 200, 131, 64, 65],
}


@pytest.fixture(params=[SASREC, SSEPT])
def model(request):
    return make(request.param)


def make(kind=SSEPT, **arguments):
    sizes = {"item_num": NUM_ITEMS, "user_num": 9, "embedding_dim": 5, "user_embedding_dim": 3}
    return perturbed(tiny_model(kind, ffn_dim=4, **sizes, **arguments).double())


def all_scores(model, history, user):
    """(NUM_ITEMS,) what `predict` says of items 1, 2, ..."""
    seq = ([0] * model.seq_max_len + history)[-model.seq_max_len :]
    items = torch.arange(1, NUM_ITEMS + 1)[None]
    inputs = {"user": torch.tensor([user]), "input_seq": torch.tensor([seq]), "candidate": items}
    return model.predict(inputs)[0].numpy()


def best(scores, history, k):
    """(items, scores) by a full sort; equal scores by rising id."""
    scores = scores.copy()
    scores[np.array(history, int) - 1] = -math.inf
    order = np.argsort(-scores, kind="stable")[:k]
    return np.where(np.isinf(scores[order]), 0, order + 1), scores[order]


@pytest.mark.parametrize("k", [1, 7, 100, 1000])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_best_items_of_predict_are_recommended(model, k, exclude_seen):
    items, scores = model.recommend(HISTORIES, k=k, exclude_seen=exclude_seen, batch_size=3)

    assert items.shape == scores.shape == (4, min(k, NUM_ITEMS))
    assert items.dtype == np.int64
    for row, (user, history) in enumerate(HISTORIES.items()):
        hidden = history if exclude_seen else []
        expected_items, expected_scores = best(all_scores(model, history, user), hidden, k)
        np.testing.assert_array_equal(items[row], expected_items)
        np.testing.assert_allclose(scores[row], expected_scores, rtol=1e-10)


def test_where_fewer_than_k_are_left_items_are_0_and_scores_minus_infinity():
    items, scores = make().recommend(HISTORIES, [3], k=5)

    assert set(items[0, :3]) == {298, 299, 300}
    assert items[0, 3:].tolist() == [0, 0]
    assert np.isneginf(scores[0, 3:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_scores_come_by_rising_id(dtype):
    model = make().to(dtype)
    with torch.no_grad():  # only 7 different items: 44 ties or 43 of each
        model.item_embedding_layer.weight[1:] = torch.randn(7, 5, dtype=dtype)[
            torch.arange(NUM_ITEMS) % 7
        ]

    items, scores = model.recommend(HISTORIES, [2, 9], k=150)

    for row in range(2):
        assert len(np.unique(scores[row])) == 4
        for score in np.unique(scores[row]):
            ids = items[row, scores[row] == score]
            assert (np.diff(ids) > 0).all()
            assert len(set(ids % 7)) == 1


def test_more_users_than_are_ranked_at_a_time(monkeypatch):
    monkeypatch.setattr(catalogue, "USERS_AT_A_TIME", 3)
    model = make()
    users = [9, 2, 5, 2, 3]  # one asked for twice

    items, scores = model.recommend(HISTORIES, users, k=3)

    for row, user in enumerate(users):
        alone = model.recommend(HISTORIES, [user], k=3)
        np.testing.assert_array_equal(items[row], alone.items[0])
        np.testing.assert_allclose(scores[row], alone.scores[0], rtol=1e-10)


def test_a_data_set_gives_all_events_of_its_users():
    model, data = make(), SASRecDataSet(histories=HISTORIES)

    from_data = model.recommend(data, [9], k=300)

    np.testing.assert_array_equal(from_data.items, model.recommend(HISTORIES, [9], k=300).items)
    assert not set(HISTORIES[9]) & set(from_data.items[0])


def test_half_precision_is_ranked_in_float32():
    items, scores = make().half().recommend(HISTORIES, k=100, exclude_seen=False)

    assert scores.dtype == np.float32
    assert all(len(set(row)) == 100 for row in items)


def test_nobody_gets_no_rows():
    items, scores = make().recommend(HISTORIES, [], k=4)

    assert items.shape == scores.shape == (0, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("item", [1, 150, 300])
def test_scores_that_are_not_finite_never_rank(value, item):
    model = make()
    with torch.no_grad():
        model.item_embedding_layer.weight[item] = value

    with pytest.raises(ValueError, match="not finite: the model's parameters"):
        model.recommend(HISTORIES, exclude_seen=False)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training):
    model = make().train(training)

    model.recommend(HISTORIES)

    assert model.training is training


@pytest.mark.parametrize(
    ("histories", "arguments", "error", "message"),
    [
        (HISTORIES, {"users": [9, 4]}, ValueError, r"user 4 has no events in histories \(of 4"),
        ({7: []}, {}, ValueError, "user 7 has no events"),
        ({10: [1]}, {}, IndexError, r"user has id 10, outside .* 10 rows \(0..9\)"),
        ({1: [301]}, {}, IndexError, r"item has id 301, outside .* 301 rows \(0..300\)"),
        ({1: [0]}, {}, ValueError, "item id must be an integer from 1 .*got 0"),
        ([5, 9], {}, TypeError, "histories must map each user to a sequence of items.* got list"),
        ({1: 5}, {}, TypeError, r"histories\[1\] must be a sequence of ids, got int 5"),
        ({1: {5: 9}}, {}, TypeError, r"histories\[1\] must be a sequence of ids, got dict"),
        (HISTORIES, {"users": 9}, TypeError, "users must be a sequence of ids, got int 9"),
        (HISTORIES, {"users": [[9]]}, ValueError, r"user id must be an integer .* got \[9\]"),
        (HISTORIES, {"candidates": {9: [1]}}, TypeError, "candidates, the same .* got dict"),
        (HISTORIES, {"exclude_seen": None}, ValueError, "exclude_seen must be True or False"),
        (HISTORIES, {"k": 0}, ValueError, "k must be an integer of at least 1, got 0"),
        (HISTORIES, {"batch_size": 0}, ValueError, "batch_size must be .* at least 1, got 0"),
    ],
)
def test_bad_input_is_named(histories, arguments, error, message):
    with pytest.raises(error, match=message):
        make().recommend(histories, **arguments)
