"""The ranking protocol, on stub models that score by a rule, so that the metrics are known."""

import math

import numpy as np
import pytest
import torch
from support.evaluation import NUM_ITEMS, Stub, by_history, constant, make_dataset
from support.raw_ids import interactions

from ssept_ext import SASREC, SSEPT
from ssept_ext.data.histories import Histories
from ssept_ext.data.packed import pack
from ssept_ext.evaluation.candidates import EvaluationCandidates, draw_candidates
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.metrics import count_above, ndcg_and_hr
from ssept_ext.evaluation.sampled import (
    evaluate,
    evaluate_popularity,
    evaluate_repeated,
    evaluate_valid,
    rank_candidates,
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


CONSTANT = {
    "pessimistic": (0, 0),
    "optimistic": (1, 1),
    "mean": (sum(1 / math.log2(rank + 2) for rank in range(10)) / 21, 10 / 21),
}
"""NDCG and HR of a model that cannot tell the 21 candidates apart."""


@pytest.mark.parametrize("ties", CONSTANT)
def test_ties_count_against_the_model_for_it_or_in_all_orders(dataset, ties):
    expected = pytest.approx(CONSTANT[ties], rel=1e-12)
    model = Stub(constant)

    trials = draw_candidates(dataset, "test", num_neg_test=20, seed=0)
    repeated = evaluate_repeated(model, dataset, 2, ties=ties)

    assert rank_candidates(model, trials, ties=ties) == expected
    assert evaluate(model, dataset, ties=ties) == expected
    assert evaluate_valid(model, dataset, ties=ties) == expected
    assert (repeated.ndcg_mean, repeated.hr_mean) == expected


def test_ties_count_against_the_model_unless_asked_otherwise(dataset):
    assert evaluate(Stub(constant), dataset) == evaluate_valid(Stub(constant), dataset) == (0, 0)


def test_a_negative_that_is_the_held_out_item_ties_with_it():
    model = SSEPT(item_num=9, user_num=1, seq_max_len=5, embedding_dim=4, conv_dims=[8, 8])
    collisions = np.array([[7, 7, 7, 7]])  # whatever the scores, three negatives equal item 7

    ndcg, hr = rank_candidates(
        model, EvaluationCandidates("test", Histories.from_mapping({1: [3, 1]}), collisions)
    )

    assert (ndcg, hr) == pytest.approx((1 / math.log2(5), 1))


def test_a_large_part_of_the_score_that_is_the_users_does_not_make_ties(dataset):
    sizes = {"item_num": NUM_ITEMS, "user_num": 61, "seq_max_len": 5, "num_neg_test": 20}
    model = SSEPT(**sizes, embedding_dim=4, conv_dims=[8, 8])
    with torch.no_grad():
        model.user_embedding_layer.weight *= 1e8

    metrics = evaluate(model, dataset, seed=0)

    assert metrics == pytest.approx(evaluate(model.double(), dataset, seed=0))
    assert metrics[0] > 0


def test_a_model_that_knows_the_answer_gets_one(dataset):
    answer = torch.zeros(dataset.usernum + 1, dtype=torch.int64)
    for user, items in dataset.user_test.items():
        answer[user] = items[0] if items else 0
    model = Stub(lambda batch, items: (items == answer[batch.users][:, None]).float())

    assert evaluate(model, dataset, seed=0) == (1, 1)


@pytest.mark.filterwarnings("ignore:num_neg_test is 100, but 200 of 200 users have fewer items")
@pytest.mark.parametrize("exclude", ["train", "all"])
def test_the_answer_is_never_its_own_negative_however_few_items_there_are(exclude):
    """10 items in a cycle: a model that knows them must not be measured as if it knew nothing."""
    cycle = {u: [(u + step) % 10 + 1 for step in range(6)] for u in range(200)}
    dataset = make_dataset({user + 1: items for user, items in cycle.items()}, itemnum=10)
    tensors = [torch.from_numpy(dataset.histories(s).oldest()) for s in ("valid", "test")]
    valid, test = (torch.cat([torch.zeros(1, dtype=torch.int64), of]) for of in tensors)
    knows = {
        answers: Stub(
            lambda batch, items, of=of: (items == of[batch.users][:, None]).float(),
            num_neg_test=100,
        )
        for answers, of in (("valid", valid), ("test", test))
    }

    assert evaluate(knows["test"], dataset, exclude=exclude) == (1, 1)
    assert evaluate_valid(knows["valid"], dataset, exclude=exclude) == (1, 1)
    assert evaluate_repeated(knows["test"], dataset, 2, exclude=exclude).ndcg_mean == 1


@pytest.mark.parametrize(
    ("rank", "ndcg", "hr"), [(0, 1, 1), (2, 0.5, 1), (9, 1 / math.log2(11), 1), (10, 0, 0)]
)
def test_metrics_of_one_rank(rank, ndcg, hr):
    assert ndcg_and_hr(torch.tensor([[rank]])) == pytest.approx((ndcg, hr))


def test_metrics_are_averaged_over_users():
    assert ndcg_and_hr(torch.tensor([[0], [2], [50], [60]])) == pytest.approx((1.5 / 4, 2 / 4))


@pytest.mark.parametrize(
    ("ties", "ranks"),
    [("pessimistic", [[2], [0]]), ("optimistic", [[1], [0]]), ("mean", [[1, 2], [0, 0]])],
)
def test_rank_is_the_number_of_others_that_score_higher_or_the_same(ties, ranks):
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])

    assert count_above(scores, torch.tensor([[2.0], [5.0]]), ties).tolist() == ranks


def test_metrics_between_two_ranks_are_averaged_over_all_of_them():
    ndcg = sum(1 / math.log2(rank + 2) for rank in (8, 9)) / 4

    assert ndcg_and_hr(torch.tensor([[8, 11]])) == pytest.approx((ndcg, 2 / 4), rel=1e-12)


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
def test_a_model_of_a_user_scores_in_evaluation_mode_without_gradients(dataset, training):
    modes = set()

    def rule(batch, candidates):
        modes.add((model.training, torch.is_inference_mode_enabled()))
        return constant(batch, candidates)

    model = Stub(rule).train(training)
    evaluate(model, dataset)

    assert modes == {(False, True)}
    assert model.training is training


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
        ({"exclude": "none"}, r"exclude must be one of \('train', 'all'\), got 'none'"),
        ({"split": "train"}, r"split must be one of \('valid', 'test'\), got 'train'"),
        ({"split": ["test"]}, r"split must be one of \('valid', 'test'\), got \['test'\]"),
        ({"eval_batch_size": 0}, "eval_batch_size must be an integer of at least 1, got 0"),
        ({"eval_batch_size": 1.5}, "eval_batch_size must be an integer of at least 1, got 1.5"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
        ({"ties": "worst"}, r"ties must be one of \(.*\), got 'worst'"),
        ({"ties": ["mean"]}, r"ties must be one of \(.*\), got \['mean'\]"),
        ({"max_users": 0}, "max_users must be an integer of at least 1, got 0"),
        ({"max_users": 1e4}, "max_users must be an integer of at least 1, got 10000.0"),
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

    options = {"seed": 4, "exclude": exclude, "max_users": 30, "ties": "mean"}
    popularity = evaluate_popularity(dataset, num_neg_test=20, split=split, **options)

    assert popularity == rank_candidates(model, dataset, **options)
    assert 0 < popularity[0] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neg_test": 0}, "num_neg_test must be an integer of at least 1, got 0"),
        ({"ties": "best"}, "ties must be one of .*, got 'best'"),
    ],
)
def test_popularity_is_as_strict_about_its_options(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_popularity(dataset, **options)


@pytest.mark.parametrize("max_users", [10, None])
def test_repeats_are_evaluations_with_consecutive_seeds(dataset, max_users):
    model = Stub(by_history)
    options = {"exclude": "all", "split": "valid", "max_users": max_users}
    separate = np.array([evaluate(model, dataset, seed, **options) for seed in (5, 6, 7, 8)])

    repeated = evaluate_repeated(model, dataset, 4, 5, eval_batch_size=9, **options)

    means, deviations = separate.mean(0), separate.std(0, ddof=1)
    assert (repeated.ndcg_mean, repeated.hr_mean) == pytest.approx(means.tolist())
    assert (repeated.ndcg_std, repeated.hr_std) == pytest.approx(deviations.tolist())
    assert repeated.ndcg_std > 0


def test_repeats_without_a_seed_are_fresh(dataset):
    model = Stub(by_history)

    assert evaluate_repeated(model, dataset) != evaluate_repeated(model, dataset)


def test_users_are_drawn_anew_in_each_repeat(dataset):
    """Knowing the answers of odd users alone, a model is as good as there are odd users in the draw."""
    answers = torch.zeros(dataset.usernum + 1, dtype=torch.int64)
    for user, items in dataset.user_test.items():
        answers[user] = items[0] if items and user % 2 else 0
    model = Stub(lambda batch, items: (items == answers[batch.users][:, None]).float())

    spread = [evaluate_repeated(model, dataset, seed=0, max_users=n).hr_std for n in (10, None)]

    assert spread[0] > 0.05
    assert spread[1] == pytest.approx(0, abs=1e-12)


def test_one_repeat_has_no_spread(dataset):
    with pytest.raises(ValueError, match="n_repeats must be an integer of at least 2, got 1"):
        evaluate_repeated(Stub(constant), dataset, n_repeats=1)


@pytest.mark.parametrize("number", [np.int64(3), torch.tensor(3)])
def test_integers_of_numpy_and_torch_are_integers(dataset, number):
    options = {"seed": number, "max_users": number, "eval_batch_size": number}
    model = Stub(by_history, num_neg_test=number)

    assert evaluate(model, dataset, **options) == evaluate(
        Stub(by_history, num_neg_test=3), dataset, seed=3, max_users=3
    )
    evaluate_repeated(model, dataset, number, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda events: evaluate(Stub(constant), events),
        lambda events: evaluate_popularity(events),
        lambda events: evaluate_full(SASREC(item_num=NUM_ITEMS), events),
        lambda events: draw_candidates(events, "test", num_neg_test=1, seed=0),
    ],
    ids=["evaluate", "evaluate_popularity", "evaluate_full", "draw_candidates"],
)
def test_interactions_are_no_data_set_and_the_error_says_how_to_make_one(call):
    with pytest.raises(TypeError, match=r"such as Interactions\.to_dataset\(\) returns, got Inter"):
        call(interactions())
