"""The op `top_k`: the best items for each query, without a matrix of scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call, register_without_gradient

_MOST_ON_CUDA = 1024


def top_k(
    queries: Tensor,
    table: Tensor,
    k: int,
    num_items: int,
    seen_items: Tensor | None = None,
    seen_offsets: Tensor | None = None,
    candidates: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k items with the highest scores for each query, best first; equal ones come by ascending id.

    The score of item i is the inner product of the query and row i, times `scale[i]`. It is summed in the order of the
    elements, with one rounding for each (by fused multiply-adds), so the CPU kernel gives the same bits for any number
    of threads, queries and items, and equal rows have equal scores. The table is read once for up to 256 queries, and
    memory does not depend on the number of items. The op is no part of autograd.

    Parameters
    ----------
    queries
        (B, W) float32, or float64 with a table of float64.
    table
        (R, W) int8, float16, bfloat16, float32 or float64. Row 0 is padding, and is never read. Or (groups, W, 64):
        64 items side by side, in which a table of fewer bytes than float32 is read faster: item i is
        `table[i // 64, :, i % 64]`, and R is 64 times the number of groups.
    k
        Number of items to find, 0 to the number of those ranked. The CUDA kernel finds up to 1024; "auto" leaves more
        to the reference.
    num_items
        The items 1 to this are ranked, at most R - 1.
    seen_items
        (M,) int64 items of all queries, one after another, that are left out. 0 is none.
    seen_offsets
        (B + 1,) int64: query b leaves out `seen_items[seen_offsets[b] : seen_offsets[b + 1]]`.
    candidates
        (C,) int64 ascending items to rank instead of 1 to `num_items`, the same for all queries.
    scale
        (R,) factors of the scores, of the dtype of queries.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    items
        (B, k) int64; 0 where fewer than k are left.
    scores
        (B, k) of the dtype of queries; -inf where there is no item. In a row for which any item has a score that is not
        finite, all are NaN, and the items are 0.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype, device or value, or candidates do not ascend; names it.
    IndexError
        If an id is outside the table; names it and R. On CUDA it is left out, and the next
        `ssept_ext.ops.raise_pending_errors` raises the error.

    Examples
    --------
    >>> table = torch.tensor([[0.0], [3.0], [1.0], [3.0], [2.0]])
    >>> top_k(torch.tensor([[1.0], [-1.0]]), table, 3, 4)[0]
    tensor([[1, 3, 4],
            [2, 4, 1]])
    >>> top_k(torch.tensor([[1.0]]), table, 2, 4, torch.tensor([1, 3]), torch.tensor([0, 2]))
    (tensor([[4, 2]]), tensor([[2., 1.]]))
    """
    if backend in (None, "auto") and queries.device.type == "cuda" and k > _MOST_ON_CUDA:
        backend = "reference"
    args = (queries, table, k, num_items, seen_items, seen_offsets, candidates, scale)
    with torch.no_grad():
        return call("top_k", queries.device, backend, *args)  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementation of this op in a library namespace."""

    def fake(queries: Tensor, _: Tensor, k: int, *__: Any, **___: Any) -> tuple[Tensor, Tensor]:
        scores = queries.new_empty(queries.shape[0], k)
        return scores.new_empty(scores.shape, dtype=torch.int64), scores

    register_without_gradient(namespace, "top_k", fake)
