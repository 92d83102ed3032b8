"""Blocks of scores."""

import pytest
import torch

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
