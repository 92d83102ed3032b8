"""The ops that rank items in plain PyTorch: a part of `reference`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssept_ext.ops.reference_checks import (
    check_dims,
    check_ids_type,
    check_shape,
    checked_ids,
)

PACKED_ITEMS = 64
"""Items of a packed table whose elements lie side by side."""

_TABLE_TYPES = (torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SCORES_AT_A_TIME = 1 << 21


def top_k(
    queries: Tensor,
    table: Tensor,
    k: int,
    num_items: int,
    seen_items: Tensor | None = None,
    seen_offsets: Tensor | None = None,
    candidates: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k items with the highest scores: see `ssept_ext.ops`."""
    num_rows = _check(queries, table, num_items, scale, seen_items, seen_offsets)
    if candidates is not None:
        _check_ids("candidates", candidates, table)
    num_ranked = num_items if candidates is None else len(candidates)
    if not 0 <= k <= num_ranked:
        raise ValueError(f"k must be in 0..{num_ranked}, got {k}")
    seen_row, seen_items = _seen(queries, seen_items, seen_offsets, num_rows)
    if candidates is None:
        candidates = torch.arange(1, num_items + 1, device=table.device)
    else:
        candidates = _ascending(candidates, num_rows)
    num_queries = len(queries)
    scores = queries.new_full((num_queries, k), -math.inf)
    items = torch.zeros(num_queries, k, dtype=torch.int64, device=queries.device)
    finite = torch.ones(num_queries, dtype=torch.bool, device=queries.device)
    for ids in _blocks(candidates, num_queries):
        block = item_scores(queries, table, ids, scale)
        finite &= block.isfinite().all(1)
        place = torch.searchsorted(ids, seen_items).clamp(max=len(ids) - 1)
        here = ids[place] == seen_items
        block[seen_row[here], place[here]] = -math.inf
        all_scores = torch.cat([scores, block], 1)
        columns = best_columns(all_scores, k)
        scores = all_scores.gather(1, columns)
        items = torch.cat([items, ids.expand(num_queries, -1)], 1).gather(1, columns)
    items[(scores == -math.inf) | ~finite[:, None]] = 0
    scores[~finite] = math.nan
    return items, scores


def item_ranks(
    queries: Tensor,
    table: Tensor,
    targets: Tensor,
    num_items: int,
    target_scores: Tensor | None = None,
    seen_items: Tensor | None = None,
    seen_offsets: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Count the items that score higher than a target, and at least the same: see `ssept_ext.ops`."""
    num_rows = _check(queries, table, num_items, scale, seen_items, seen_offsets)
    _check_ids("targets", targets, table)
    check_shape("targets", targets, (len(queries),))
    if target_scores is not None:
        check_shape("target_scores", target_scores, (len(queries),))
        if target_scores.dtype != queries.dtype:
            raise ValueError(f"target_scores must be {queries.dtype}, got {target_scores.dtype}")
        _check_device("target_scores", target_scores, table)
    seen_row, seen_items = _seen(queries, seen_items, seen_offsets, num_rows)
    targets = checked_ids("targets", targets, num_rows, padding=True)
    if target_scores is None:
        target_scores = queries.new_zeros(len(queries))
        for ids in _blocks(
            torch.unique(targets), len(queries)
        ):  # by the products of the other items
            place = torch.searchsorted(ids, targets).clamp(max=len(ids) - 1)
            here = (ids[place] == targets) & (targets != 0)
            if num_rows:
                scores = item_scores(queries, table, ids, scale)
                target_scores[here] = scores.gather(1, place[:, None])[here, 0]
    ranks = torch.zeros(len(queries), 2, dtype=torch.int64, device=queries.device)
    hidden_row = torch.cat([seen_row, torch.arange(len(queries), device=queries.device)])
    hidden_items = torch.cat([seen_items, targets])
    for ids in _blocks(torch.arange(1, num_items + 1, device=table.device), len(queries)):
        scores = item_scores(queries, table, ids, scale)
        here = (hidden_items >= ids[0]) & (hidden_items <= ids[-1])
        scores[hidden_row[here], hidden_items[here] - ids[0]] = math.nan
        for column, beats in enumerate((torch.gt, torch.ge)):
            ranks[:, column] += beats(scores, target_scores[:, None]).sum(1)
    return ranks, target_scores.clone()


def item_scores(queries: Tensor, table: Tensor, ids: Tensor, scale: Tensor | None) -> Tensor:
    """(B, n) scores of items, from sums in float64, so that equal rows have equal scores."""
    is_packed = table.dim() == 3
    rows = table[ids // PACKED_ITEMS, :, ids % PACKED_ITEMS] if is_packed else table[ids]
    scores = (queries.double() @ rows.double().T).to(queries.dtype)
    return scores if scale is None else scores * scale[ids]


def best_columns(scores: Tensor, k: int) -> Tensor:
    """(B, k) columns of the highest of (B, n) scores, best first, and equal ones from left to right."""
    if k == 0:
        return scores.new_zeros(len(scores), 0, dtype=torch.int64)
    least = scores.topk(k).values[:, -1:]
    above, equal = scores > least, scores == least
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    # Of a row with NaN, which has no order, the first ones.
    short = chosen.sum(1, keepdim=True) < k
    chosen = torch.where(short, torch.arange(scores.shape[1], device=scores.device) < k, chosen)
    columns = chosen.nonzero()[:, 1].view(len(scores), k)
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def _blocks(ids: Tensor, num_queries: int) -> tuple[Tensor, ...]:
    """Split ids so that memory for the scores of each part is bounded."""
    if len(ids) == 0:
        return ()
    return torch.split(ids, max(_SCORES_AT_A_TIME // max(num_queries, 1), 1))


def _check(
    queries: Tensor,
    table: Tensor,
    num_items: int,
    scale: Tensor | None,
    seen_items: Tensor | None,
    seen_offsets: Tensor | None,
) -> int:
    """Check shapes, dtypes and devices; returns the number of rows of the table."""
    if table.dtype not in _TABLE_TYPES:
        raise ValueError(
            f"table must be int8, float16, bfloat16, float32 or float64, got {table.dtype}"
        )
    if table.dim() == 3:
        check_shape("table", table, (*table.shape[:2], PACKED_ITEMS))
    else:
        check_dims("table", table, 2)
    num_rows = table.shape[0] * (PACKED_ITEMS if table.dim() == 3 else 1)
    check_dims("queries", queries, 2)
    check_shape("queries", queries, (queries.shape[0], table.shape[1]))
    wide = torch.float64 if table.dtype == torch.float64 else torch.float32
    for name, x in (("queries", queries), ("scale", scale)):
        if x is not None and x.dtype != wide:
            raise ValueError(f"{name} must be {wide} with a table of {table.dtype}, got {x.dtype}")
        if x is not None:
            _check_device(name, x, table)
    if scale is not None:
        check_shape("scale", scale, (num_rows,))
    if not 0 <= num_items <= max(num_rows - 1, 0):
        raise ValueError(f"num_items must be in 0..{max(num_rows - 1, 0)}, got {num_items}")
    if (seen_items is None) != (seen_offsets is None):
        raise ValueError("seen_items and seen_offsets must be given together")
    for name, ids in (("seen_items", seen_items), ("seen_offsets", seen_offsets)):
        if ids is not None:
            _check_ids(name, ids, table)
    if seen_offsets is not None:
        check_shape("seen_offsets", seen_offsets, (len(queries) + 1,))
    return num_rows


def _check_device(name: str, x: Tensor, table: Tensor) -> None:
    if x.device != table.device:
        raise ValueError(f"{name} must be on the device of table")


def _check_ids(name: str, ids: Tensor, table: Tensor) -> None:
    check_dims(name, ids, 1)
    check_ids_type(name, ids)
    _check_device(name, ids, table)


def _readable(ids: Tensor) -> bool:
    """Whether a look at values costs nothing."""
    return ids.device.type == "cpu" and not torch.compiler.is_compiling()


def _ascending(candidates: Tensor, num_rows: int) -> Tensor:
    ids = checked_ids("candidates", candidates, num_rows, padding=True)
    if _readable(ids):
        before = torch.cat([ids.new_zeros(1), ids[:-1]])
        if (ids <= before).any():
            first = int((ids <= before).nonzero()[0])
            raise ValueError(f"candidates must ascend, got {ids[first]} after {before[first]}")
    return ids


def _seen(
    queries: Tensor, seen_items: Tensor | None, seen_offsets: Tensor | None, num_rows: int
) -> tuple[Tensor, Tensor]:
    """The row of each seen item, and the items, without those of no row."""
    if seen_items is None or seen_offsets is None:
        none = torch.zeros(0, dtype=torch.int64, device=queries.device)
        return none, none
    lengths = seen_offsets.diff()
    if _readable(seen_offsets) and (
        seen_offsets[0] != 0 or (lengths < 0).any() or seen_offsets[-1] > len(seen_items)
    ):
        raise ValueError(
            f"seen_offsets must rise from 0 to at most {len(seen_items)}, got an end of "
            f"{seen_offsets[-1]}"
        )
    ids = checked_ids("seen_items", seen_items, num_rows, padding=True)
    rows = torch.arange(len(queries), device=ids.device).repeat_interleave(lengths)
    return rows, ids[: len(rows)]
