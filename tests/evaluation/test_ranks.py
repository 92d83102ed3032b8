"""The rank of each user's held-out item, in frames and files that other packages read."""

import csv
from uuid import UUID

import numpy as np
import pytest
import torch
from support.factories import perturbed, tiny_model
from support.raw_ids import SIZES, interactions

from ssept_ext import SASREC, SASRecDataSet
from ssept_ext.evaluation.full import evaluate_full, evaluate_ranks

NUM_ITEMS = 30
K = 6


@pytest.fixture
def dataset():
    """40 users with 3 to 20 events, some of them repeated, also held-out ones."""
    rng = np.random.default_rng(1)
    return SASRecDataSet(
        histories={
            user: rng.integers(1, NUM_ITEMS + 1, rng.integers(3, 21)).tolist()
            for user in range(1, 41)
        }
    )


@pytest.fixture
def model():
    """Half of the items have the vector of another one."""
    model = perturbed(tiny_model(SASREC, item_num=NUM_ITEMS))
    with torch.no_grad():
        weight = model.item_embedding_layer.weight
        weight[1::2] = weight[2::2]
    return model


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_ir_measures_has_the_same_metrics_of_the_frames(dataset, model, ties, split):
    ir_measures = pytest.importorskip("ir_measures")
    ranks = evaluate_ranks(model, dataset, K, split=split, ties=ties)
    judged, listed = ranks.to_frame(), ranks.lists()

    qrels = [
        ir_measures.Qrel(str(user), str(item), 1)
        for user, item in zip(judged["user"], judged["item"], strict=True)
    ]
    run = [
        ir_measures.ScoredDoc(str(user), str(item), -rank)
        for user, item, rank in zip(listed["user"], listed["item"], listed["rank"], strict=True)
    ]
    hr, ndcg, rr = ir_measures.Success @ K, ir_measures.nDCG @ K, ir_measures.RR @ K
    values = ir_measures.calc_aggregate([hr, ndcg, rr], qrels, run)

    metrics = evaluate_full(model, dataset, [K], split=split, ties=ties)
    assert 0 < metrics.hr[K] < 1
    assert values[hr] == pytest.approx(metrics.hr[K], rel=1e-9)
    assert values[ndcg] == pytest.approx(metrics.ndcg[K], rel=1e-9)
    assert values[rr] == pytest.approx(metrics.map[K], rel=1e-9)


def test_the_lists_joined_with_the_items_to_find_have_their_ranks(dataset, model):
    """As RecTools counts: of pairs of user and item in both frames, the rank in the lists."""
    ranks = evaluate_ranks(model, dataset, K)
    judged, listed = ranks.to_frame(), ranks.lists()

    joined = judged[["user", "item"]].merge(listed, on=["user", "item"])

    assert 0 < len(joined) < len(judged)
    expected = judged[judged["rank"] <= K]
    assert joined.values.tolist() == expected.values.tolist()


@pytest.mark.parametrize("k", [1, K, NUM_ITEMS - 1, NUM_ITEMS, 1000])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_a_held_out_item_is_in_the_list_where_it_ranks_or_beyond_it(dataset, model, k, ties):
    ranks = evaluate_ranks(model, dataset, k, ties=ties)

    lists = {user: [] for user in ranks.users.tolist()}
    frame = ranks.lists()
    for user, item, rank in zip(frame["user"], frame["item"], frame["rank"], strict=True):
        lists[user].append(item)
        assert rank == len(lists[user])
    arrays = (ranks.users, ranks.items, ranks.ranks[:, 0])
    for user, item, rank in zip(*(array.tolist() for array in arrays), strict=True):
        seen = {*dataset.user_train[user], *dataset.user_valid[user]} - {item}
        assert len(lists[user]) == len(set(lists[user])) == min(k, NUM_ITEMS - len(seen))
        assert not seen & set(lists[user])
        assert lists[user][rank : rank + 1] == [item] * (rank < k)


def test_the_rest_of_a_list_is_what_the_model_recommends(dataset, model):
    ranks = evaluate_ranks(model, dataset, K, exclude_seen=False)

    frame = ranks.lists()
    inputs = {u: [*dataset.user_train[u], *dataset.user_valid[u]] for u in ranks.users.tolist()}
    histories = SASRecDataSet(histories=inputs, hold_out=False)
    best = model.recommend(histories, list(inputs), NUM_ITEMS, exclude_seen=False).items
    for row, (user, target) in enumerate(zip(ranks.users, ranks.items, strict=True)):
        listed = np.asarray(frame["item"])[np.asarray(frame["user"]) == user]
        others = best[row][best[row] != target]
        assert listed[listed != target].tolist() == others[: K - (target in listed)].tolist()


def test_metrics_follow_from_one_ranking_at_any_cut_off_up_to_its_k(dataset, model):
    ranks = evaluate_ranks(model, dataset, K)

    assert ranks.metrics([1, K]) == evaluate_full(model, dataset, [1, K])
    with pytest.raises(ValueError, match="each of ks must be at most 6, got 7"):
        ranks.metrics([1, 7])
    with pytest.raises(ValueError, match="k must be at most 6, got 7"):
        ranks.lists(7)


def test_shorter_lists_are_beginnings_of_longer_ones(dataset, model):
    ranks = evaluate_ranks(model, dataset, K)

    longer, shorter = ranks.lists(), ranks.lists(2)

    assert shorter.values.tolist() == longer[longer["rank"] <= 2].values.tolist()


def test_ranks_of_all_orders_of_ties_are_the_best_and_the_worst(dataset, model):
    best, worst = (
        evaluate_ranks(model, dataset, K, ties=ties).columns()["rank"]
        for ties in ("optimistic", "pessimistic")
    )

    mean = evaluate_ranks(model, dataset, K, ties="mean")

    columns = mean.columns()
    assert list(columns) == ["user", "item", "rank", "worst_rank"]
    assert np.array_equal(columns["rank"], best)
    assert np.array_equal(columns["worst_rank"], worst)
    assert (best < worst).any()
    with pytest.raises(ValueError, match='which ties="mean" does not give'):
        mean.lists()


@pytest.mark.parametrize("make", [str, int, lambda x: UUID(int=int(x))], ids=["str", "int", "uuid"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_frames_and_files_have_raw_ids(tmp_path, make, suffix):
    events = interactions({make(u): [make(u + i) for i in range(5)] for u in range(50, 58)})
    model = SASREC.fit(events, **SIZES, num_epochs=1)
    data = events.to_dataset()

    ranks = model.evaluate_ranks(data, K)
    ranks.save(tmp_path / f"ranks.{suffix}")

    frame = ranks.to_frame()
    assert list(frame["user"]) == [make(u) for u in range(50, 58)]
    assert list(frame["item"]) == [make(u + 4) for u in range(50, 58)]
    assert set(ranks.lists()["item"]) <= {make(i) for i in range(50, 62)}
    found = read(tmp_path / f"ranks.{suffix}")
    assert [row[0] for row in found] == [str(make(u)) for u in range(50, 58)]
    assert [row[1] for row in found] == [str(make(u + 4)) for u in range(50, 58)]
    assert [int(row[2]) for row in found] == list(frame["rank"])


def read(path):
    """The rows of a file of ranks, as texts."""
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        names, rows = table.column_names, zip(*table.to_pydict().values(), strict=True)
    else:
        with path.open(newline="") as file:
            names, *rows = csv.reader(file)
    assert names == ["user", "item", "rank"]
    return [[str(value) for value in row] for row in rows]


def test_data_without_raw_ids_have_those_that_the_model_keeps():
    events = interactions({str(u): [str(u + i) for i in range(5)] for u in range(8)})
    model = SASREC.fit(events, **SIZES, num_epochs=1)
    bare = SASRecDataSet(histories=events.to_dataset().histories("all"))

    ranks = model.evaluate_ranks(bare, K)

    assert ranks.columns()["user"].tolist() == [str(u) for u in range(8)]


def test_a_name_of_another_ending_is_refused(dataset, model, tmp_path):
    with pytest.raises(ValueError, match=r"ranks.txt: the name of the file must end in .cs"):
        evaluate_ranks(model, dataset, K).save(tmp_path / "ranks.txt")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("k", [0, "2", 1.5])
def test_a_wrong_length_of_lists_is_named(dataset, model, k):
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        evaluate_ranks(model, dataset, k)
