"""Blocks of scores."""

from types import SimpleNamespace

import pytest
import torch
from support.factories import tiny_model
from torch import nn

from ssept_ext import SSEPT
from ssept_ext.data.synthetic import synthetic
from ssept_ext.ranking import catalogue
from ssept_ext.ranking.catalogue import score_blocks


@pytest.mark.parametrize("num_queries", [1, 2, 100])
@pytest.mark.parametrize("scores_at_a_time", [64, 1 << 16, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_items_get_equal_scores_wherever_they_are(
    monkeypatch, num_queries, scores_at_a_time, dtype
):
    monkeypatch.setattr(catalogue, "SCORES_AT_A_TIME", scores_at_a_time)
    queries = torch.randn(num_queries, 100, dtype=dtype)
    items = torch.randn(100, dtype=dtype).repeat(3418, 1)

    scores = torch.cat([block.clone() for _, block in score_blocks(queries, items)], 1)

    assert torch.equal(scores[:, :3417], scores[:, :1].expand(-1, 3417))
    assert scores[:, 3417:].isneginf().all()


def test_blocks_are_bounded_and_cover_each_item_once(monkeypatch):
    monkeypatch.setattr(catalogue, "SCORES_AT_A_TIME", 1000)
    queries, items = torch.randn(5, 3), torch.randn(301, 3)

    blocks = [(first, block.clone()) for first, block in score_blocks(queries, items)]

    assert [first for first, _ in blocks] == [1, 193]
    assert all(block.numel() <= 1000 for _, block in blocks)
    torch.testing.assert_close(
        torch.cat([block for _, block in blocks], 1)[:, :300], queries @ items[1:].T
    )


def test_nothing_but_the_last_block_is_copied(monkeypatch):
    """One user's scores of a million items fit in one block: a copy of the table would cost more than they do."""
    monkeypatch.setattr(catalogue, "ITEMS_AT_A_TIME", 400)
    copied = []

    def cat(tensors, *arguments):
        copied.append(len(tensors[0]))
        return torch.cat(tensors, *arguments)

    monkeypatch.setattr(catalogue, "torch", SimpleNamespace(cat=cat, mm=torch.mm))
    queries, items = torch.randn(1, 3), torch.randn(1001, 3)

    blocks = [block.clone() for _, block in score_blocks(queries, items)]

    assert copied == [1000 - 2 * 384 + 1]  # and the row before
    torch.testing.assert_close(torch.cat(blocks, 1)[:, :1000], queries @ items[1:].T)


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
