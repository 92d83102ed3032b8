"""Metrics over the whole catalogue, against ir-measures and against rankings known by construction."""

import dataclasses

import numpy as np
import pytest
import torch

from ssept_ext import SASREC, SSEPT, SASRecDataSet
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.ranking import catalogue

NUM_ITEMS = 250
KS = (1, 3, 10, 500)


@pytest.fixture
def dataset():
    """50 users with 1 to 30 events, some of them repeated."""
    rng = np.random.default_rng(0)
    histories = {u: rng.integers(1, NUM_ITEMS, rng.integers(1, 31)).tolist() for u in range(1, 51)}
    histories[8] += [NUM_ITEMS, NUM_ITEMS]  # the held-out item has been seen
    return SASRecDataSet(histories=histories)


def make(kind=SSEPT, dtype=torch.float64):
    users = {"user_num": 50, "user_embedding_dim": 3} if kind is SSEPT else {}
    width = 5 + users.get("user_embedding_dim", 0)
    sizes = {"item_num": NUM_ITEMS, "seq_max_len": 6, "num_blocks": 1, "embedding_dim": 5}
    model = kind(**sizes, conv_dims=[4, width], **users).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def trials_of(dataset, split):
    """(user, input, held-out item) of each user who can be measured."""
    for user, train in dataset.user_train.items():
        if train and dataset.user_test[user]:
            valid, test = dataset.user_valid[user], dataset.user_test[user]
            yield (user, train, valid[0]) if split == "valid" else (user, train + valid, test[0])


def oracle(model, dataset, split, exclude_seen):
    """HR, NDCG, MAP at KS and MRR by ir-measures, coverage by a set, of `predict`'s scores."""
    ir_measures = pytest.importorskip("ir_measures")
    judgements, ranked, recommended = [], [], []
    for user, history, target in trials_of(dataset, split):
        seq = ([0] * model.seq_max_len + history)[-model.seq_max_len :]
        items = np.arange(1, NUM_ITEMS + 1)
        inputs = {"user": [user], "input_seq": [seq], "candidate": items[None]}
        scores = model.predict({name: np.array(ids) for name, ids in inputs.items()})[0].numpy()
        unseen = ~np.isin(items, history) | (not exclude_seen)
        judgements.append(ir_measures.Qrel(str(user), str(target), 1))
        ranked += [
            ir_measures.ScoredDoc(str(user), str(item), score)
            for item, score in zip(items, scores, strict=True)
            if unseen[item - 1] or item == target
        ]
        recommended.append(items[unseen][np.argsort(-scores[unseen])])
    measures = {
        "hr": ir_measures.Success,
        "ndcg": ir_measures.nDCG,
        "map": ir_measures.AP,
    }
    asked = {(name, k): measure @ k for name, measure in measures.items() for k in KS}
    values = ir_measures.calc_aggregate([*asked.values(), ir_measures.RR], judgements, ranked)
    expected = {name: {k: values[asked[name, k]] for k in KS} for name in measures}
    covered = {k: {i for items in recommended for i in items[:k].tolist()} for k in KS}
    expected["coverage"] = {k: len(items) / NUM_ITEMS for k, items in covered.items()}
    expected |= dict.fromkeys(("num_users", "num_events"), len(judgements))
    return {**expected, "mrr": values[ir_measures.RR]}


@pytest.mark.parametrize("kind", [SASREC, SSEPT])
@pytest.mark.parametrize(
    ("split", "exclude_seen"), [("test", True), ("test", False), ("valid", True)]
)
def test_metrics_are_those_of_an_independent_library(dataset, kind, split, exclude_seen):
    model = make(kind)

    metrics = model.evaluate_full(dataset, KS, exclude_seen, split, eval_batch_size=7)

    expected = oracle(model, dataset, split, exclude_seen)
    for name, value in dataclasses.asdict(metrics).items():
        assert value == pytest.approx(expected[name], rel=1e-9), name
    assert 0 < metrics.hr[10] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
def test_ties_count_against_the_model_for_it_or_in_all_orders(dataset, dtype, ties):
    model = make(dtype=dtype)
    with torch.no_grad():  # all items alike, by vectors whose products need rounding
        model.item_embedding_layer.weight[1:] = torch.randn(5, dtype=dtype)

    metrics = evaluate_full(model, dataset, ks=(200, 250), ties=ties)

    # The worst rank is the number of other unseen items, at least 250 - 32 of them.
    unseen = [
        NUM_ITEMS - len({*history, target}) for _, history, target in trials_of(dataset, "test")
    ]
    ranks = {
        "pessimistic": [[n] for n in unseen],
        "optimistic": [[0] for _ in unseen],
        "mean": [range(n + 1) for n in unseen],
    }[ties]
    assert metrics.hr[250] == 1
    for got, gain in (
        (metrics.hr[200], lambda rank: rank < 200),
        (metrics.ndcg[250], lambda rank: 1 / np.log2(rank + 2)),
        (metrics.map[200], lambda rank: (rank < 200) / (rank + 1)),
        (metrics.mrr, lambda rank: 1 / (rank + 1)),
    ):
        of_users = [np.mean([gain(rank) for rank in of_user]) for of_user in ranks]
        assert got == pytest.approx(np.mean(of_users), rel=1e-9)


def test_ties_count_against_the_model_unless_asked_otherwise(dataset):
    model = make()
    with torch.no_grad():
        model.item_embedding_layer.weight[1:] = 1

    assert evaluate_full(model, dataset).hr[20] == 0


def test_all_users_are_measured_whatever_the_groups(dataset, monkeypatch):
    model = make()
    together = evaluate_full(model, dataset)
    monkeypatch.setattr(catalogue, "USERS_AT_A_TIME", 4)

    apart = evaluate_full(model, dataset, eval_batch_size=3)

    assert apart == together


def test_scores_that_are_not_finite_never_rank(dataset):
    model = make()
    with torch.no_grad():
        model.item_embedding_layer.weight[77] = torch.nan

    with pytest.raises(ValueError, match="not finite"):
        evaluate_full(model, dataset)


def test_a_dataset_larger_than_the_model_is_an_error(dataset):
    dataset.itemnum = NUM_ITEMS + 1

    with pytest.raises(ValueError, match=r"item 251, the model knows items 1\.\.250"):
        evaluate_full(make(), dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ks": ()}, "ks must have at least one cut-off"),
        ({"exclude_seen": "no"}, r"exclude_seen must be True or False, got 'no'"),
        ({"ks": (5, 0)}, "each of ks must be an integer of at least 1, got 0"),
        ({"split": "train"}, "split must be one of .*valid.*test.*, got 'train'"),
        ({"ties": "none"}, r"ties must be one of \(.*\), got 'none'"),
        ({"eval_batch_size": 0}, "eval_batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_bad_options_are_errors(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_full(make(), dataset, **arguments)


def test_booleans_of_numpy_are_booleans(dataset):
    model = make()

    assert evaluate_full(model, dataset, exclude_seen=np.True_) == evaluate_full(model, dataset)


def test_a_single_cut_off_is_no_sequence_of_them(dataset):
    with pytest.raises(TypeError, match="ks must be a sequence of cut-offs, got 10"):
        evaluate_full(make(), dataset, ks=10)
