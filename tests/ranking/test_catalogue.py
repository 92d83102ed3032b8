"""The best of a catalogue."""

import pytest
import torch
from support.factories import tiny_model
from torch import nn

from ssept_ext import SSEPT
from ssept_ext.data.histories import Histories
from ssept_ext.data.synthetic import synthetic
from ssept_ext.ranking import catalogue
from ssept_ext.ranking.catalogue import Catalogue


class MadeRows:
    """Rows of a table that are made when they are asked for, as those of a sharded model are."""

    def __init__(self, table):
        self.table, self.shape = table, table.shape

    def __getitem__(self, rows):
        return self.table[rows].clone()


@pytest.mark.parametrize("with_candidates", [False, True])
def test_vectors_that_are_made_in_blocks_give_the_best_and_the_ranks_of_all(
    monkeypatch, with_candidates
):
    monkeypatch.setattr(catalogue, "ITEMS_AT_A_TIME", 10)
    queries, table = torch.randn(4, 3), torch.randn(51, 3)
    table[[40, 7, 22]] = table[5].clone()  # ties across blocks
    seen = Histories.from_mapping({1: [5, 50], 2: [], 3: [40, 11, 12], 4: [1]})
    ids = torch.tensor([2, 5, 7, 22, 40, 49]) if with_candidates else None
    k = 6 if with_candidates else 30
    targets = torch.tensor([7, 50, 22, 3])
    whole, blocks = Catalogue(table), Catalogue(MadeRows(table))

    expected, actual = (x.best(queries, k, seen, ids) for x in (whole, blocks))

    assert torch.equal(actual.items, expected.items)
    assert torch.equal(actual.scores, expected.scores)
    ranks = [x.ranks(queries, targets, seen) for x in (whole, blocks)]
    assert torch.equal(*ranks)


@pytest.mark.parametrize(
    "score",
    [
        lambda model, data: model.evaluate(data),
        lambda model, data: model.evaluate_full(data),
        lambda model, data: model.recommend(data, k=1),
        lambda model, data: model.similar_items([1]),
        lambda model, data: model.user_state([1, 2]),
        lambda model, data: model.predict({"user": [1], "input_seq": [[1]], "candidate": [[2]]}),
    ],
    ids=["evaluate", "evaluate_full", "recommend", "similar_items", "user_state", "predict"],
)
def test_scoring_never_switches_the_mode_of_a_model_that_another_thread_trains(monkeypatch, score):
    data = synthetic(num_users=5)
    sizes = {"embedding_dim": 4, "conv_dims": [4, 8], "num_neg_test": 5, "dropout_rate": 0.9}
    model = SSEPT(item_num=data.itemnum, user_num=data.usernum, seq_max_len=4, **sizes)
    monkeypatch.setattr(model, "train", pytest.fail)

    score(model, data)

    assert model.training


class Noisy(nn.Module):
    """A layer of a user's own, with a dropout of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.5)

    def forward(self, tokens):
        return self.dropout(self.inner(tokens))


def test_a_layer_of_a_users_own_drops_nothing_from_scores():
    model = tiny_model()
    expected = model.recommend({1: [3, 5]}).scores.tolist()
    model.layer_normalization = Noisy(model.layer_normalization)

    scores = model.recommend({1: [3, 5]}).scores.tolist()

    assert scores == expected
    assert model.training
    assert model.layer_normalization.dropout.training
