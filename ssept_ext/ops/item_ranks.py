"""The op `item_ranks`: where an item of each query ranks, without a matrix of scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call, register_without_gradient


def item_ranks(
    queries: Tensor,
    table: Tensor,
    targets: Tensor,
    num_items: int,
    target_scores: Tensor | None = None,
    seen_items: Tensor | None = None,
    seen_offsets: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Count, for each query, the other items that score higher than its target, and those that score at least the same.

    Scores are those of `top_k` by the same backend, bit by bit. The op is no part of autograd.

    Parameters
    ----------
    targets
        (B,) int64 rows of the table; 0 for none.
    target_scores
        (B,) scores to compare with, of the dtype of queries, instead of those of the targets: where the targets are in
        another part of a table, for example.
    queries, table, num_items, seen_items, seen_offsets, scale, backend
        As for `top_k`.

    Returns
    -------
    ranks
        (B, 2) int64: the numbers of items, of 1 to `num_items` but the target and the seen ones, that score higher than
        the target, and that score higher or the same. NaN is neither.
    scores
        (B,) those compared with; without `target_scores`, 0 for target 0.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype, device or value; names it.
    IndexError
        If an id is outside the table; names it and the number of rows.

    Examples
    --------
    >>> table = torch.tensor([[0.0], [3.0], [1.0], [3.0], [2.0]])
    >>> item_ranks(torch.tensor([[1.0], [-1.0]]), table, torch.tensor([3, 4]), 4)
    (tensor([[0, 1],
            [1, 1]]), tensor([ 3., -2.]))
    """
    args = (queries, table, targets, num_items, target_scores, seen_items, seen_offsets, scale)
    with torch.no_grad():
        return call("item_ranks", queries.device, backend, *args)  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementation of this op in a library namespace."""

    def fake(queries: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        scores = queries.new_empty(queries.shape[0])
        return scores.new_empty(queries.shape[0], 2, dtype=torch.int64), scores

    register_without_gradient(namespace, "item_ranks", fake)
