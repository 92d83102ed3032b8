"""Models that read times are asked for a held-out event at its own time."""

import numpy as np
import pytest
from support.asked_times import asked_times
from support.evaluation import NUM_ITEMS
from support.factories import perturbed, tiny_model

from ssept_ext import SASREC, SASRecDataSet
from ssept_ext.data.histories import Histories
from ssept_ext.evaluation import (
    EvaluationCandidates,
    draw_candidates,
    evaluate,
    evaluate_full,
    rank_candidates,
)

HISTORIES = Histories.from_mapping({1: [5, 9, 5, 20], 2: [1], 4: [17, 4, 3]})
TIMED = HISTORIES._replace(times=np.array([10, 20, 40, 41, 7, 1, 2, 300]))


def dataset(histories=TIMED):
    data = SASRecDataSet(histories=histories)
    data.itemnum = NUM_ITEMS
    return data


@pytest.fixture
def model():
    return perturbed(tiny_model(SASREC, item_num=NUM_ITEMS, time_bias=True).double())


@pytest.fixture
def asked(model, monkeypatch):
    return asked_times(model, monkeypatch)


@pytest.mark.parametrize(("split", "times"), [("valid", [40, 2]), ("test", [41, 300])])
def test_the_model_is_asked_at_the_time_of_the_item_to_find(model, asked, split, times):
    evaluate(model, dataset(), seed=0, split=split)
    evaluate_full(model, dataset(), split=split)

    assert asked == [times, times]


def test_candidates_from_a_file_have_the_times_of_the_data_set(model, asked, tmp_path):
    draw_candidates(dataset(), "test", num_neg_test=5, seed=0).save(tmp_path / "drawn.npz")

    rank_candidates(model, EvaluationCandidates.load(tmp_path / "drawn.npz", dataset()))

    assert asked == [[41, 300]]


def test_users_who_are_left_out_leave_no_times_behind(model, asked):
    everything = list(range(1, NUM_ITEMS + 1))
    of_all = Histories.from_mapping({1: everything * 2, 2: [3, 4, 5]})
    data = dataset(of_all._replace(times=np.arange(len(of_all.items))))

    with pytest.warns(UserWarning, match="1 of 2 users have seen all"):
        evaluate(model, data, seed=0)

    assert asked == [[2 * NUM_ITEMS + 2]]


@pytest.mark.parametrize("measure", [evaluate, evaluate_full])
def test_a_data_set_without_times_is_refused(model, measure):
    with pytest.raises(ValueError, match="must have times of events, because the model has time_b"):
        measure(model, dataset(HISTORIES))
