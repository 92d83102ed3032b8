"""Splits by time: the same moments for all users, nothing after them in training, and nothing lost."""

from datetime import datetime

import numpy as np
import pytest
from support.factories import model_for

from ssept_ext import SASRecDataSet, WarpSampler
from ssept_ext.data.histories import Histories
from ssept_ext.data.splits import SplitCounts
from ssept_ext.data.synthetic import synthetic
from ssept_ext.evaluation.candidates import measurable_users

HISTORIES = {1: [4, 2, 9, 3], 2: [7, 4], 3: [5, 8], 5: []}
TIMES = [10, 20, 30, 40, 15, 35, 32, 50]


def dataset(times=TIMES, histories=HISTORIES):
    arrays = Histories.from_mapping(histories)
    return SASRecDataSet(histories=arrays._replace(times=np.array(times)))


def test_every_user_is_split_at_the_same_moments():
    data = dataset()

    data.split_by_time(valid_from=30, test_from=40)

    assert data.user_train == {1: [4, 2], 2: [7], 3: [], 5: []}
    assert data.user_valid == {1: [9], 2: [4], 3: [5], 5: []}
    assert data.user_test == {1: [3], 2: [], 3: [8], 5: []}
    assert data.histories("valid", [3, 1]).times.tolist() == [32, 30]
    assert data.histories("valid", [3, 1], with_times=False).times is None


def test_parts_and_what_is_new_in_them_are_counted():
    counts = dataset().split_by_time(valid_from=30, test_from=40)

    assert (counts.train_events, counts.valid_events, counts.test_events) == (3, 3, 2)
    assert (counts.valid_users, counts.test_users) == (2, 1)
    assert (counts.new_users, counts.new_items) == (1, 4)  # user 3; items 9, 5, 3, 8
    assert "3 training events before 30" in str(counts)


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (1_700_000_000, "before 1700000000 (2023-11-14 22:13 UTC, if in seconds), "),
        (1_700_000_000_000, "before 1700000000000, "),
        (-5, "before -5, "),
    ],
)
def test_a_moment_that_may_be_in_seconds_is_shown_as_a_date_too(moment, shown):
    assert shown in str(SplitCounts(moment, moment + 1, *range(7)))


def test_users_with_training_events_are_evaluated():
    data = dataset()

    data.split_by_time(valid_from=30, test_from=40)

    assert measurable_users(data, "valid").tolist() == [1, 2]
    assert measurable_users(data, "test").tolist() == [1]


@pytest.mark.parametrize(
    ("shares", "moments"),
    [
        ({}, (50, 50)),  # the last of 8 events
        ({"valid_share": 0.25, "test_share": 0.25}, (32, 40)),
        ({"valid_share": 0, "test_share": 0.5}, (32, 32)),
        ({"valid_share": 0.5, "test_share": 0}, (32, 51)),
        ({"valid_share": 0, "test_share": 0}, (51, 51)),
    ],
)
def test_shares_are_of_all_events_the_latest(shares, moments):
    counts = dataset().split_by_time(**shares)

    assert (counts.valid_from, counts.test_from) == moments


def test_events_of_one_moment_stay_together():
    counts = dataset([1, 2, 2, 2, 2, 2, 2, 3]).split_by_time(valid_share=0.3, test_share=0.2)

    assert (counts.valid_from, counts.test_from) == (2, 3)
    assert (counts.train_events, counts.valid_events, counts.test_events) == (1, 6, 1)


def test_moments_may_be_datetimes():
    day = 86400
    data = dataset([day * i for i in (1, 2, 3, 4, 1, 4, 3, 5)])

    counts = data.split_by_time(datetime(1970, 1, 4), np.datetime64("1970-01-05"))

    assert (counts.valid_from, counts.test_from) == (3 * day, 4 * day)


def test_the_last_events_can_be_held_out_again():
    data = dataset()
    data.split_by_time(valid_from=30, test_from=40)

    data.split()

    assert data.user_test == {1: [3], 2: [], 3: [], 5: []}


def test_an_edited_history_without_times_cannot_be_split():
    data = dataset()
    data.User[1].append(7)

    with pytest.raises(ValueError, match="a split by time needs times of events"):
        data.split_by_time(valid_from=30, test_from=40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid_from": 30}, "give both valid_from and test_from, or neither"),
        (
            {"valid_from": 40, "test_from": 30},
            "valid_from must not be after test_from = 30, got 40",
        ),
        ({"valid_from": 10, "test_from": 30}, "valid_from must be after the first event, at 10"),
        ({"valid_from": "soon", "test_from": 30}, "valid_from: times must be numbers or datetimes"),
        ({"valid_share": 1}, r"valid_share must be in \[0, 1\), got 1"),
        ({"test_share": "half"}, r"test_share must be in \[0, 1\), got 'half'"),
        ({"valid_share": 0.5, "test_share": 0.5}, "valid_share . test_share must be below 1"),
    ],
)
def test_moments_and_shares_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        dataset().split_by_time(**arguments)


def test_times_that_fall_are_named():
    times = [10, 20, 30, 40, 35, 15, 32, 50]

    with pytest.raises(ValueError, match="times must rise .* those of user 2 fall"):
        dataset(times).split_by_time(valid_from=30, test_from=40)


def test_events_after_the_split_do_not_reach_the_trained_model():
    histories = synthetic(num_users=30).histories("all")
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(30), np.diff(histories.offsets))
    times = rng.integers(0, 1000, len(rows))
    times = times[np.lexsort((times, rows))]
    later = np.flatnonzero(times >= 700)
    shuffled = histories.items.copy()
    shuffled[later] = rng.permutation(shuffled[later])

    def trained(items):
        data = SASRecDataSet(histories=histories._replace(items=items, times=times))
        data.split_by_time(valid_from=700, test_from=850)
        model = model_for(data, seq_max_len=6)
        model.load_state_dict(start or model.state_dict())
        start.update({name: x.clone() for name, x in model.state_dict().items()})
        sizes = (data.usernum, data.itemnum, 10, 6)
        with WarpSampler(
            data.histories("train"), *sizes, seed=0, popularity_exponent=0.5
        ) as batches:
            model.train_model(
                data, batches, num_epochs=2, batch_size=10, val_epoch=1, verbose=False
            )
        return model.state_dict()

    start = {}
    before, after = trained(histories.items), trained(shuffled)

    assert (shuffled != histories.items).any()
    assert all((before[name] == after[name]).all() for name in before)
    assert any((before[name] != start[name]).any() for name in before)
