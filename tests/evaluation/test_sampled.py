"""The ranking protocol, on stub models that score by a rule, so that the metrics are known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ssept_ext import SSEPT, Interactions, SASRecDataSet
from ssept_ext.data.histories import Histories
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.packed import last_events, pack
from ssept_ext.evaluation.candidates import MAX_USERS, EvaluationCandidates, draw_candidates
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.metrics import ndcg_and_hr, ranks_of_first
from ssept_ext.evaluation.sampled import (
    evaluate,
    evaluate_popularity,
    evaluate_repeated,
    evaluate_valid,
    rank_candidates,
)

NUM_ITEMS = 40


class Stub(nn.Module):
    """Scores by `rule(batch, candidates)`."""

    device = torch.device("cpu")

    def __init__(self, rule, item_num=NUM_ITEMS, user_num=None, seq_max_len=5, num_neg_test=20):
        super().__init__()
        self.rule = rule
        self.item_num, self.seq_max_len, self.num_neg_test = item_num, seq_max_len, num_neg_test
        if user_num is not None:
            self.user_num = user_num

    def score(self, batch, candidates, user_part=True):
        return self.rule(batch, candidates)


def constant(batch, candidates):
    return torch.zeros(candidates.shape)


def by_history(batch, candidates):
    """A score that depends on every event, on its position and on the user."""
    event = (batch.items * (batch.positions + 7)).double().sin()
    length = batch.cu_seqlens.diff()
    row = torch.repeat_interleave(torch.arange(len(length)), length)
    taste = torch.zeros(len(length), dtype=torch.float64).index_add(0, row, event)
    return ((taste + batch.users)[:, None] * candidates).sin()


def make_dataset(histories, itemnum=NUM_ITEMS):
    dataset = SASRecDataSet(histories=histories)
    dataset.itemnum = itemnum
    return dataset


@pytest.fixture
def dataset():
    """60 users (of 1..61) with 1 to 12 events."""
    rng = np.random.default_rng(0)
    return make_dataset(
        {
            user: rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 13)).tolist()
            for user in range(1, 62)
            if user != 7
        }
    )


def loop_over_users(score, dataset, split, candidates, seq_max_len=5):
    """recommenders' evaluation, user by user on padded input, except that ties count against."""
    gains, hits, number = 0.0, 0, 0
    for user in range(1, dataset.usernum + 1):
        train = dataset.user_train.get(user, [])
        valid = dataset.user_valid.get(user, [])
        target = (valid if split == "valid" else dataset.user_test.get(user, []))[:1]
        if not train or not target:
            continue
        history = train if split == "valid" else train + valid
        seq = ([0] * seq_max_len + history)[-seq_max_len:]
        items = [*target, *candidates[number][1:].tolist()]
        assert candidates[number][0] == target[0]
        scores = score(*(torch.tensor([ids]) for ids in ([user], seq, items)))[0].tolist()
        rank = sum(score >= scores[0] for score in scores[1:])
        number += 1
        if rank < 10:
            gains += 1 / math.log2(rank + 2)
            hits += 1
    return gains / number, hits / number


@pytest.mark.parametrize(("split", "evaluate"), [("valid", evaluate_valid), ("test", evaluate)])
def test_metrics_are_those_of_recommenders_loop(dataset, split, evaluate):
    trials = draw_candidates(dataset, split, num_neg_test=20, seed=3)

    metrics = evaluate(Stub(by_history), dataset, seed=3)

    expected = loop_over_users(
        lambda user, seq, items: by_history(pack(user, seq), items),
        dataset,
        split,
        trials.candidates,
    )
    assert 0 < expected[0] < expected[1] < 1
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_sse_pt_ranks_as_its_predict_does_user_by_user(dataset):
    model = SSEPT(
        item_num=NUM_ITEMS,
        user_num=61,
        seq_max_len=5,
        num_blocks=1,
        embedding_dim=4,
        conv_dims=[8, 8],
        num_neg_test=20,
    ).double()
    trials = draw_candidates(dataset, "test", num_neg_test=20, seed=3)

    metrics = model.evaluate(dataset, seed=3, eval_batch_size=7)

    expected = loop_over_users(
        lambda user, seq, items: model.predict(
            {"user": user, "input_seq": seq, "candidate": items}
        ),
        dataset,
        "test",
        trials.candidates,
    )
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_ties_count_against_the_model(dataset):
    assert evaluate(Stub(constant), dataset, seed=0) == (0, 0)


def test_a_negative_that_is_the_held_out_item_ties_with_it():
    model = SSEPT(item_num=9, user_num=1, seq_max_len=5, embedding_dim=4, conv_dims=[8, 8])
    collisions = np.array([[7, 7, 7, 7]])  # whatever the scores, three negatives equal item 7

    ndcg, hr = rank_candidates(
        model, EvaluationCandidates("test", Histories.from_mapping({1: [3, 1]}), collisions)
    )

    assert (ndcg, hr) == pytest.approx((1 / math.log2(5), 1))


def test_a_large_part_of_the_score_that_is_the_users_does_not_make_ties(dataset):
    model = SSEPT(item_num=NUM_ITEMS, user_num=61, seq_max_len=5, embedding_dim=4, conv_dims=[8, 8])
    with torch.no_grad():
        model.user_embedding_layer.weight *= 1e8

    metrics = evaluate(model, dataset, seed=0)

    assert metrics == pytest.approx(evaluate(model.double(), dataset, seed=0))
    assert metrics[0] > 0


def test_a_model_that_knows_the_answer_gets_one(dataset):
    answer = torch.zeros(dataset.usernum + 1, dtype=torch.int64)
    for user, items in dataset.user_test.items():
        answer[user] = items[0] if items else 0
    # By default the answer may be among the negatives, and then ties with itself.
    model = Stub(lambda batch, items: (items == answer[batch.users][:, None]).float())

    assert evaluate(model, dataset, seed=0, exclude="all") == (1, 1)


@pytest.mark.parametrize(
    ("rank", "ndcg", "hr"), [(0, 1, 1), (2, 0.5, 1), (9, 1 / math.log2(11), 1), (10, 0, 0)]
)
def test_metrics_of_one_rank(rank, ndcg, hr):
    assert ndcg_and_hr(torch.tensor([rank])) == pytest.approx((ndcg, hr))


def test_metrics_are_averaged_over_users():
    assert ndcg_and_hr(torch.tensor([0, 2, 50, 60])) == pytest.approx((1.5 / 4, 2 / 4))


def test_rank_is_the_number_of_other_candidates_that_score_at_least_as_high():
    scores = torch.tensor([[2.0, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0]])

    assert ranks_of_first(scores).tolist() == [2, 0]


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

    model = SSEPT.fit(
        interactions, seq_max_len=4, embedding_dim=4, num_epochs=1, val_epoch=1, verbose=False
    )
    dataset = interactions.to_dataset()
    evaluate(model, dataset)
    evaluate_full(model, dataset)
    evaluate_popularity(dataset)
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


def test_negatives_are_uniform_over_what_is_outside_the_training_history():
    dataset = make_dataset({1: [2, 3, 3, 6, 4, 5]}, itemnum=8)

    negatives = draw_candidates(dataset, "test", num_neg_test=10_000, seed=0).candidates[0, 1:]

    counts = np.bincount(negatives, minlength=9)
    assert counts[[0, 2, 3, 6]].tolist() == [0, 0, 0, 0]
    # 10,000 / 5 each, the held-out items 4 and 5 as well; the standard deviation is 40.
    assert np.abs(counts[[1, 4, 5, 7, 8]] - 2000).max() < 200


@pytest.mark.parametrize("split", ["valid", "test"])
def test_exclude_all_keeps_the_held_out_items_out(split):
    dataset = make_dataset({1: [2, 3, 6, 4, 5]}, itemnum=8)

    trials = draw_candidates(dataset, split, num_neg_test=1000, seed=0, exclude="all")

    assert set(trials.candidates[0, 1:].tolist()) == {1, 7, 8}


def test_a_user_with_one_item_left_gets_it_every_time():
    dataset = make_dataset({1: [*range(1, 40), 1, 2]})

    trials = draw_candidates(dataset, "test", num_neg_test=50, seed=0)

    assert set(trials.candidates[0, 1:].tolist()) == {40}


def test_a_user_with_no_item_left_is_an_error():
    dataset = make_dataset({3: [1, 2, 3], 5: [*range(1, NUM_ITEMS + 1), 1, 2]})

    with pytest.raises(ValueError, match="user 5 has seen all 40 items"):
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


def test_the_result_does_not_depend_on_the_batch_size(dataset):
    model = Stub(by_history)

    results = {evaluate(model, dataset, seed=1, eval_batch_size=size) for size in (1, 7, 1000)}

    assert len(results) == 1


def test_the_seed_decides_the_negatives(dataset):
    first, again, other, fresh, fresher = (
        draw_candidates(dataset, "test", num_neg_test=9, seed=seed).candidates.tolist()
        for seed in (1, 1, 2, None, None)
    )

    assert first == again
    assert len({str(candidates) for candidates in (first, other, fresh, fresher)}) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_never_rank(dataset, bad):
    def rule(batch, candidates):
        return torch.where(batch.users[:, None] == 5, bad, constant(batch, candidates))

    with pytest.raises(ValueError, match="not finite: the model's parameters"):
        evaluate(Stub(rule), dataset)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_scores_in_evaluation_mode_without_gradients_and_gets_its_mode_back(
    dataset, training
):
    modes = set()

    def rule(batch, candidates):
        modes.add((model.training, torch.is_inference_mode_enabled()))
        return constant(batch, candidates)

    model = Stub(rule).train(training)
    evaluate(model, dataset)

    assert modes == {(False, True)}
    assert model.training is training


def test_the_model_gets_its_mode_back_after_an_error(dataset):
    def fail(batch, candidates):
        raise RuntimeError("planted")

    model = Stub(fail)
    with pytest.raises(RuntimeError, match="planted"):
        evaluate(model, dataset)

    assert model.training


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"item_num": 39}, r"item 40, the model knows items 1\.\.39"),
        ({"user_num": 60}, r"user 61, the model knows users 1\.\.60"),
    ],
)
def test_a_dataset_larger_than_the_model_is_an_error(dataset, sizes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Stub(constant, **sizes), dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "none"}, 'exclude must be "train" or "all", got \'none\''),
        ({"eval_batch_size": 0}, "eval_batch_size must be an integer of at least 1, got 0"),
        ({"eval_batch_size": 1.5}, "eval_batch_size must be an integer of at least 1, got 1.5"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_bad_options_are_errors(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Stub(constant), dataset, **options)


@pytest.mark.parametrize(("split", "exclude"), [("valid", "train"), ("test", "all")])
def test_popularity_ranks_the_same_candidates_by_their_training_events(dataset, split, exclude):
    events = [item for items in dataset.user_train.values() for item in items]
    counts = torch.from_numpy(np.bincount(events, minlength=NUM_ITEMS + 1))
    model = Stub(lambda batch, candidates: counts[candidates])
    rank_candidates = {"valid": evaluate_valid, "test": evaluate}[split]

    popularity = evaluate_popularity(dataset, seed=4, num_neg_test=20, exclude=exclude, split=split)

    assert popularity == rank_candidates(model, dataset, seed=4, exclude=exclude)
    assert 0 < popularity[0] < 1


def test_popularity_needs_a_negative(dataset):
    with pytest.raises(ValueError, match="num_neg_test must be an integer of at least 1, got 0"):
        evaluate_popularity(dataset, num_neg_test=0)


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


def test_repeats_have_the_mean_and_the_spread_of_separate_measurements(dataset):
    model = Stub(by_history)
    trials = draw_candidates(dataset, "test", num_neg_test=4 * 20, seed=5)
    separate = np.array(
        [
            rank_candidates(
                model,
                EvaluationCandidates("test", trials.inputs, trials.candidates[:, [0, *group]]),
            )
            for group in np.arange(1, 81).reshape(4, 20)
        ]
    )

    repeated = evaluate_repeated(model, dataset, n_repeats=4, seed=5, eval_batch_size=9)

    means, deviations = separate.mean(0), separate.std(0, ddof=1)
    assert (repeated.ndcg_mean, repeated.hr_mean) == pytest.approx(means.tolist())
    assert (repeated.ndcg_std, repeated.hr_std) == pytest.approx(deviations.tolist())
    assert repeated.ndcg_std > 0


def test_one_repeat_has_no_spread(dataset):
    with pytest.raises(ValueError, match="n_repeats must be an integer of at least 2, got 1"):
        evaluate_repeated(Stub(constant), dataset, n_repeats=1)
