"""Models that read times are asked for a moment: that of the request, or a user's usual next one."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from support.asked_times import asked_times
from support.factories import perturbed, tiny_model
from support.raw_ids import SIZES, interactions

from ssept_ext import SASREC, SSEPT, SASRecDataSet
from ssept_ext.data.histories import Histories
from ssept_ext.data.packed import last_events

HISTORIES = {2: [5, 9, 5, 20], 5: [1], 3: [17, 4, 3]}
TIMES = {2: [10, 20, 40, 41], 5: [7], 3: [1, 2, 300]}
USUAL = [41 + 10, 7, 300 + 1]
ARRAYS = Histories.from_mapping(HISTORIES)._replace(times=np.concatenate([*TIMES.values()]))


@pytest.fixture(params=[SASREC, SSEPT])
def model(request):
    return perturbed(tiny_model(request.param, time_bias=True).double())


@pytest.fixture
def asked(model, monkeypatch):
    return asked_times(model, monkeypatch)


def test_recommendations_are_the_best_by_the_scores_of_that_time(model):
    found = model.recommend(HISTORIES, k=20, at=[50, 60, 700], history_times=TIMES)

    batch = last_events(ARRAYS, slice(0, 3), model.seq_max_len, np.array([50, 60, 700]))
    with torch.no_grad():
        scores = model.score(batch, torch.arange(1, 21).expand(3, -1))
    for row, history in enumerate(HISTORIES.values()):
        scores[row, torch.tensor(history) - 1] = -torch.inf
        best = scores[row].argsort(descending=True)[: 20 - len(set(history))] + 1
        assert found.items[row][: len(best)].tolist() == best.tolist()


def test_a_time_is_for_all_users_or_for_each(model, asked):
    for at in (500, [300, 400, 500], np.array([300, 400, 500]), np.int64(500)):
        model.recommend(HISTORIES, at=at, history_times=TIMES)

    assert asked == [[500] * 3, [300, 400, 500], [300, 400, 500], [500] * 3]


def test_without_a_time_it_is_the_usual_next_one(model, asked):
    model.recommend(HISTORIES, history_times=TIMES)
    model.recommend(SASRecDataSet(histories=ARRAYS))
    model.user_state(HISTORIES[3], history_times=TIMES[3])

    assert asked == [USUAL, USUAL, USUAL[2:]]


def test_datetimes_are_seconds_in_utc(model, asked):
    noon = datetime(2026, 3, 1, 12)
    seen = [noon, noon + timedelta(minutes=1)]
    in_berlin = datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=1)))

    for at in (in_berlin, datetime(2026, 3, 1, 13), np.datetime64("2026-03-01T13")):
        model.recommend({1: [3, 5]}, at=at, history_times={1: seen})

    assert asked == [[1772370000]] * 3  # date -u -d 2026-03-01T13:00 +%s


def test_users_may_be_asked_for_in_another_order(model, asked):
    model.recommend(HISTORIES, users=[3, 2, 3], history_times=TIMES)

    assert asked == [[USUAL[2], USUAL[0], USUAL[2]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "histories must have times, because the model has time_bias: pass history_times"),
        ({"at": 500}, "histories must have times"),
        (
            {"at": 40, "history_times": TIMES},
            "at must not be before the newest event .* 41, got 40",
        ),
        ({"at": [500], "history_times": TIMES}, "one time, or one for each of 3 users, got 1"),
        ({"at": float("nan"), "history_times": TIMES}, "at: a time must be finite"),
        ({"history_times": TIMES | {5: [7, 8]}}, r"history_times\[5\] must be 1 times, .* got 2"),
        ({"history_times": {2: TIMES[2]}}, r"history_times\[5\] must be 1 times, .* got 0"),
        ({"history_times": TIMES | {3: [3, 2, 1]}}, r"history_times\[3\] must be in the order"),
    ],
)
def test_missing_and_contradictory_times_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(HISTORIES, **options)


def test_times_that_are_no_times_are_named(model):
    with pytest.raises(TypeError, match="history_times must map each user"):
        model.recommend(HISTORIES, history_times=[1, 2])
    with pytest.raises(ValueError, match="at: times must be numbers or datetimes"):
        model.recommend(HISTORIES, history_times=TIMES, at=["now"] * 3)
    with pytest.raises(ValueError, match="history_times must be None where histories are a data"):
        model.recommend(SASRecDataSet(histories=ARRAYS), history_times=TIMES)


def test_a_model_that_reads_no_times_takes_none():
    model = tiny_model()

    with pytest.raises(ValueError, match="at must be None for a model without time_bias"):
        model.recommend(HISTORIES, at=500)


class TestByRawId:
    """The same under raw ids, with the times that the model stores."""

    @pytest.fixture
    def events(self):
        events = interactions()
        return replace(events, times=np.arange(len(events)) * 10)

    @pytest.fixture
    def model(self, events):
        return SSEPT.fit(events, **SIZES, num_epochs=1, time_bias=True)

    def test_stored_histories_have_their_times(self, model, asked, events):
        model.recommend(users=["cleo", "anna"], k=2)
        model.recommend(users=["anna", "nobody"], k=2, at=10**6)

        histories = events.to_histories().of(events.user_ids.encode(["cleo", "anna"]))
        assert asked == [histories.usual_next_times().tolist(), [10**6]]

    def test_unknown_items_are_dropped_with_their_times(self, model, asked):
        with pytest.warns(UserWarning, match="dropped 1 of 3 events"):
            model.recommend({"anna": ["i1", "new", "i2"]}, history_times={"anna": [10, 20, 50]})

        assert asked == [[50 + 40]]

    def test_live_histories_need_times(self, model):
        with pytest.raises(ValueError, match="histories must have times"):
            model.recommend({"anna": ["i1"]})

    def test_times_are_saved_with_the_model(self, model, asked, tmp_path):
        model.recommend(users=["anna"], k=2)
        model.save_pretrained(tmp_path / "model")

        loaded = SSEPT.from_pretrained(tmp_path / "model")

        assert np.array_equal(loaded.known.histories.times, model.known.histories.times)
