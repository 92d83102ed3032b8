"""Which users are evaluated and among which candidates, and the files that keep them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from support.evaluation import NUM_ITEMS, Stub, by_history, constant, make_dataset

from ssept_ext import SSEPT, Interactions
from ssept_ext.data.histories import Histories
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.packed import last_events
from ssept_ext.evaluation.candidates import MAX_USERS, EvaluationCandidates, draw_candidates
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.sampled import (
    evaluate,
    evaluate_popularity,
    evaluate_valid,
    rank_candidates,
)
from ssept_ext.sampling.negatives import negative_table
from ssept_ext.utils.philox import philox_key


def test_users_without_held_out_item_or_training_event_are_skipped():
    dataset = make_dataset({1: [1, 2, 3], 2: [1, 2], 4: [4], 5: [5, 6, 7, 8]})
    dataset.user_train[6], dataset.user_valid[6], dataset.user_test[6] = [], [1], [2]
    dataset.usernum = 6

    trials = draw_candidates(dataset, "test", num_neg_test=1, seed=0)

    assert trials.inputs.users.tolist() == [1, 5]
    assert trials.candidates[:, 0].tolist() == [3, 8]


def test_neither_training_nor_evaluation_makes_dicts_or_lists(monkeypatch):
    frame = {"user": np.repeat([1, 2, 3], 5), "item": np.arange(15) % 9}
    interactions = Interactions.from_dataframe(pd.DataFrame(frame), timestamp=None)
    monkeypatch.setattr(Histories, "to_dict", None)
    monkeypatch.setattr(Histories, "from_mapping", None)

    sizes = {"seq_max_len": 4, "embedding_dim": 4, "num_neg_test": 4}
    model = SSEPT.fit(interactions, **sizes, num_epochs=1, val_epoch=1, verbose=False)
    dataset = interactions.to_dataset()
    evaluate(model, dataset)
    evaluate_full(model, dataset)
    evaluate_popularity(dataset, num_neg_test=4)
    model.recommend(dataset, k=1)
    known = KnownHistories.from_dataset(dataset, interactions.user_ids, interactions.item_ids)

    assert known.histories.items.tolist() == interactions.items.tolist()


@pytest.mark.parametrize(("split", "inputs"), [("valid", [1, 2]), ("test", [1, 2, 3])])
def test_the_input_is_everything_before_the_held_out_item(split, inputs):
    trials = draw_candidates(make_dataset({1: [1, 2, 3, 4]}), split, num_neg_test=1, seed=0)

    assert trials.inputs.items.tolist() == inputs


def test_the_newest_events_are_packed_with_their_columns():
    dataset = make_dataset({1: [1, 2, 3], 2: [9, 8, 7, 6, 5, 4], 3: [5, 6, 7, 8]})
    trials = draw_candidates(dataset, "test", num_neg_test=1, seed=0)

    batch = last_events(trials.inputs, slice(1, 3), seq_max_len=4)

    assert batch.users.tolist() == [2, 3]
    assert batch.items.tolist() == [8, 7, 6, 5, 5, 6, 7]
    assert batch.positions.tolist() == [0, 1, 2, 3, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.max_seqlen == 4


@pytest.mark.filterwarnings("ignore:num_neg_test is 10000, but 1 of 1 users have fewer items")
@pytest.mark.parametrize(("split", "outside"), [("test", [1, 4, 7, 8]), ("valid", [1, 5, 7, 8])])
def test_negatives_are_uniform_over_what_is_neither_trained_on_nor_the_answer(split, outside):
    dataset = make_dataset({1: [2, 3, 3, 6, 4, 5]}, itemnum=8)

    negatives = draw_candidates(dataset, split, num_neg_test=10_000, seed=0).candidates[0, 1:]

    counts = np.bincount(negatives, minlength=9)
    assert counts.sum() == counts[outside].sum()
    # 10,000 / 4 each, the other held-out item as well; the standard deviation is 43.
    assert np.abs(counts[outside] - 2500).max() < 200


def test_negatives_that_are_not_the_answer_are_those_of_earlier_versions(dataset):
    trials = draw_candidates(dataset, "test", num_neg_test=20, seed=3)

    train = dataset.histories("train", trials.inputs.users)
    drawn = negative_table(train, NUM_ITEMS).draw(philox_key(3), 20)
    is_answer = drawn == trials.candidates[:, :1]
    assert 0 < is_answer.sum() < 60
    np.testing.assert_array_equal(trials.candidates[:, 1:][~is_answer], drawn[~is_answer])


@pytest.mark.filterwarnings("ignore:num_neg_test is 1000, but 1 of 1 users have fewer items")
@pytest.mark.parametrize("split", ["valid", "test"])
def test_exclude_all_keeps_the_held_out_items_out(split):
    dataset = make_dataset({1: [2, 3, 6, 4, 5]}, itemnum=8)

    trials = draw_candidates(dataset, split, num_neg_test=1000, seed=0, exclude="all")

    assert set(trials.candidates[0, 1:].tolist()) == {1, 7, 8}


@pytest.mark.parametrize("answer", [39, 40])
def test_a_user_with_one_item_left_gets_it_every_time_and_a_warning_says_so(answer):
    dataset = make_dataset({1: [*range(1, 39), 1, 79 - answer, answer], 2: [1, 2, 3]})
    dataset.user_valid[1] = [1]

    with pytest.warns(UserWarning, match=r"is 36, but 1 of 2 users have .*\(at least 1, of 40\)"):
        trials = draw_candidates(dataset, "test", num_neg_test=36, seed=0)

    assert trials.candidates[0].tolist() == [answer] + [79 - answer] * 36


def test_as_many_negatives_as_there_are_items_left_are_no_reason_to_warn():
    dataset = make_dataset({1: [1, 1, 2, 3]})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_candidates(dataset, "test", num_neg_test=38, seed=0)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_user_with_no_item_left_is_left_out_with_a_warning(split):
    dataset = make_dataset({3: [1, 2, 3, 4], 5: [*range(1, NUM_ITEMS + 1), 1, 2], 6: [4, 5, 6]})

    with pytest.warns(UserWarning, match="1 of 3 users have seen all 40 items"):
        trials = draw_candidates(dataset, split, num_neg_test=1, seed=0)

    assert trials.inputs.users.tolist() == [3, 6]
    assert trials.candidates[:, 0].tolist() == ([3, 5] if split == "valid" else [4, 6])
    assert trials.inputs.items.tolist() == ([1, 2, 4] if split == "valid" else [1, 2, 3, 4, 5])


def test_nobody_with_an_item_left_is_an_error():
    dataset = make_dataset({5: [*range(1, NUM_ITEMS + 1), 1, 2]})

    with pytest.raises(ValueError, match="no user can be evaluated: all 1 have seen all 40 items"):
        draw_candidates(dataset, "test", num_neg_test=1, seed=0)


def test_no_user_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no user with a training event and a valid item"):
        evaluate_valid(Stub(constant), make_dataset({1: [1, 2], 2: [3]}))


def test_an_item_beyond_itemnum_is_an_error():
    dataset = make_dataset({1: [1, 2, 3], 2: [1, 99, 3]})

    with pytest.raises(ValueError, match=r"1\.\.40 .*got 99 in the history of user 2"):
        draw_candidates(dataset, "test", num_neg_test=1, seed=0)


def test_of_many_users_a_random_10_000_are_drawn_by_the_seed():
    dataset = make_dataset({user: [1, 2, 3] for user in range(1, 12_001)})

    first, again, other = (
        draw_candidates(dataset, "test", num_neg_test=1, seed=seed).inputs.users.tolist()
        for seed in (1, 1, 2)
    )

    assert len(set(first)) == MAX_USERS == 10_000
    assert first == again != other


def test_max_users_none_draws_everybody():
    dataset = make_dataset({user: [1, 2, 3] for user in range(1, 12_001)})

    sizes = [
        len(draw_candidates(dataset, "test", num_neg_test=1, seed=0, max_users=limit).inputs.users)
        for limit in (None, 12_000, 7)
    ]

    assert sizes == [12_000, 12_000, 7]


def test_ids_of_any_size_cost_no_more_than_small_ones():
    """Loops over, or arrays of, all numbers up to the largest id would take minutes, or 16 GB."""
    histories = {2**31 - 1: [5, 2**31 - 1, 6, 7], 4: [2**31 - 1, 5, 6]}
    dataset = make_dataset(histories, itemnum=2**31 - 1)

    _, hr = evaluate_popularity(dataset, seed=0, num_neg_test=3)

    assert hr == 1


@pytest.mark.parametrize("split", ["valid", "test"])
def test_saved_trials_load_as_they_were(dataset, tmp_path, split):
    trials = draw_candidates(dataset, split, num_neg_test=7, seed=0)
    trials.save(tmp_path / "trials")

    loaded = EvaluationCandidates.load(tmp_path / "trials", dataset)

    assert loaded.split == split
    np.testing.assert_array_equal(loaded.candidates, trials.candidates)
    for left, right in zip(loaded.inputs, trials.inputs, strict=True):
        np.testing.assert_array_equal(left, right)
    model = Stub(by_history)
    assert rank_candidates(model, loaded) == rank_candidates(model, trials)


def save_arrays(path, **changes):
    arrays = {
        "format": np.array("ssept_ext trials 1"),
        "split": np.array("test"),
        "users": np.array([1]),
        "candidates": np.array([[4, 9]]),
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": None}, "is not a file of evaluation candidates: .*users"),
        ({"users": np.array([None])}, "is not a file of evaluation candidates: .*allow_pickle"),
        (
            {"format": np.array("ssept_ext trials 0")},
            "has format 'ssept_ext trials 0'.* can be read",
        ),
        ({"split": np.array("train")}, "split 'train'"),
        ({"users": np.array([1.0])}, r"users \(1,\) float64 .* must be integers"),
        ({"users": np.array([1, 2])}, r"users \(2,\)"),
        ({"candidates": np.array([[4]])}, r"candidates \(1, 1\)"),
        ({"candidates": np.array([[4, 0]])}, r"candidate 0 is outside 1\.\.40"),
        ({"candidates": np.array([[4, 41]])}, r"candidate 41 is outside 1\.\.40"),
        ({"candidates": np.array([[3, 9]])}, r"of other data: .* user 1 is 3 there, \[4\]"),
        ({"users": np.array([2])}, r"of other data: .* user 2 is 4 there, \[\] in dataset"),
    ],
)
def test_trials_that_do_not_fit_are_refused(tmp_path, changes, message):
    dataset = make_dataset({1: [1, 2, 3, 4]})
    save_arrays(tmp_path / "good.npz")
    save_arrays(tmp_path / "bad.npz", **changes)

    assert EvaluationCandidates.load(tmp_path / "good.npz", dataset).candidates.tolist() == [[4, 9]]
    with pytest.raises(ValueError, match=f"bad.npz.*{message}"):
        EvaluationCandidates.load(tmp_path / "bad.npz", dataset)


@pytest.mark.parametrize("content", [b"", b"4 9 1", b"PK\x03\x04 cut short"])
def test_a_file_of_another_kind_is_no_trials(tmp_path, dataset, content):
    (tmp_path / "f").write_bytes(content)

    with pytest.raises(ValueError, match="f is not a file of evaluation candidates"):
        EvaluationCandidates.load(tmp_path / "f", dataset)


def test_a_missing_file_is_missing(tmp_path, dataset):
    with pytest.raises(FileNotFoundError):
        EvaluationCandidates.load(tmp_path / "f", dataset)
