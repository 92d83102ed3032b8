"""The best of the whole catalogue, and the ranks of some items in it, for many users."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssept_ext import distributed, ops
from ssept_ext._extension import Backend
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.packed import last_events
from ssept_ext.network.compressed import CompressedTable
from ssept_ext.network.padded import is_ours
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import Rows, is_sharded

USERS_AT_A_TIME = 1024
"""Number of users that are scored together."""


ITEMS_AT_A_TIME = 1 << 20
"""Largest number of vectors that are made at a time, of tables whose vectors are."""


_WITHOUT_MODE = (nn.Embedding, nn.Linear, nn.ModuleList, nn.Dropout)
"""The layers of torch in our models. `nn.Dropout` only holds the probability, and is not called."""


@contextmanager
def scoring(model: SequentialRecommender) -> Iterator[None]:
    """Compute without gradients; on exit, raise pending CUDA errors.

    A model with code of a user's own is in evaluation mode meanwhile. The mode of ours stays as it is, because another
    thread may be training them: their scores never have dropout.
    """
    was_training = model.training
    switches = _has_mode(model)
    if switches:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if switches:
            model.train(was_training)
    ops.raise_pending_errors()


def _has_mode(model: nn.Module) -> bool:
    """Whether a layer may compute something else in training: those of others than us and torch may."""
    layers = [model]
    for layer in layers:  # not `modules()`, which takes as long as a block of the encoder
        if not _is_without_mode(type(layer)):  # type: ignore[arg-type]  # a class is hashable
            return True
        layers.extend(child for child in layer._modules.values() if child is not None)
    return False


@cache
def _is_without_mode(kind: type) -> bool:
    return is_ours(kind) or kind in _WITHOUT_MODE


def encode_groups(
    model: SequentialRecommender,
    histories: Histories,
    batch_size: int,
    at: IntArray | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Encode all rows of `histories`, in groups of up to `USERS_AT_A_TIME`.

    User 0 is unknown and gets the mean of all users' vectors.

    Parameters
    ----------
    batch_size
        Users per forward pass.
    at
        (R,) time at which the next item is asked for, for a model with `time_bias`.

    Yields
    ------
    tuple
        The rows of a group, and their queries (m, Di) and user parts (m,), as `model.encode_last` returns them.
    """
    num_rows = len(histories.users)
    mean = None if histories.users.all() else model.mean_user()

    def encode(rows: slice) -> tuple[Tensor, Tensor]:
        batch = last_events(histories, rows, model.seq_max_len, at)
        vectors = model.user_vectors(batch.users, mean)
        return model.encode_last(batch.to(model.device), vectors)

    for start in range(0, num_rows, USERS_AT_A_TIME):
        end = min(start + USERS_AT_A_TIME, num_rows)
        parts = [
            encode(slice(first, min(first + batch_size, end)))
            for first in range(start, end, batch_size)
        ]
        queries, user_parts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        yield slice(start, end), queries, user_parts


class Best(NamedTuple):
    """The k best items of each of m queries, best first; equal ones are ordered by ascending id."""

    items: Tensor
    """(m, k) int64; 0 where there are fewer."""
    scores: Tensor
    """(m, k) float32 or wider; -inf where there is no item."""


class Catalogue:
    """The items that users are ranked against. Of a sharded model, each process scores those that it has."""

    def __init__(
        self,
        vectors: Rows,
        scale: Tensor | None = None,
        before: int = 0,
        num_items: int | None = None,
        is_part: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Have vectors (n + 1, Di), after a row that is not used, that come after those of `before` other items.

        Or, with `num_items`, vectors of at least so many in groups, as `ssept_ext.ops.top_k` takes them. `scale` are
        factors of the scores, one for each row.
        """
        self._vectors, self._scale, self._before = vectors, scale, before
        self._num_items = num_items
        self._is_part, self._backend = is_part, backend

    @classmethod
    def of_cosines(cls, model: SequentialRecommender) -> Catalogue:
        """Have all items of the model, scored by the cosines of their vectors and queries of length 1."""
        backend = model.scores.backend
        if model.compressed is not None:
            table = _unchanged(model, model.compressed)
            scale, num_items = table.cosine_scale, model.item_num
            return cls(table.vectors, scale, num_items=num_items, backend=backend)
        rows = model.output_table()
        return cls(rows, inverse_norms(rows), backend=backend)

    @classmethod
    def of(cls, model: SequentialRecommender, num_items: int) -> Catalogue:
        """Have the model's vectors of the items 1 to `num_items`."""
        backend = model.scores.backend
        if model.compressed is not None:
            table = _unchanged(model, model.compressed)
            return cls(table.vectors, table.scale, num_items=num_items, backend=backend)
        if is_sharded(model):
            before, vectors = model.item_part(num_items)
            return cls(vectors, None, before, is_part=True, backend=backend)
        rows = model.output_table()[: num_items + 1]
        return cls(rows, model.scores.scale(rows), backend=backend)

    def best(
        self,
        queries: Tensor,
        k: int,
        seen: Histories | None = None,
        candidates: Tensor | None = None,
    ) -> Best:
        """Rank the items for each query.

        Parameters
        ----------
        queries
            (m, Di) float32 or wider.
        k
            Number of items to find, at most the number of those ranked.
        seen
            Items that are left out: a row for each query.
        candidates
            (C,) int64 ascending items to rank; None for all.

        Raises
        ------
        ValueError
            If a score is not finite.
        """
        queries = self._for_vectors(queries)
        found = [block.best(queries, k, seen, candidates) for block in self._blocks(queries)]
        if self._is_part:
            everywhere = distributed.gather(tuple(x.cpu() for x in _merged(found, k)))
            found = [Best(*(x.to(queries.device) for x in of_one)) for of_one in everywhere]
        best = found[0] if len(found) == 1 else _merged(found, k)
        check_finite(~best.scores.isnan().any())
        return best

    def ranks(self, queries: Tensor, targets: Tensor, seen: Histories | None = None) -> Tensor:
        """Count the other items that score higher than a query's own, and those that score at least the same: (m, 2).

        Parameters
        ----------
        queries, seen
            As for `best`.
        targets
            (m,) int64 item of each query.
        """
        queries = self._for_vectors(queries)
        blocks = list(self._blocks(queries))
        scores = None
        if self._is_part or len(blocks) > 1:
            # Each block has some of the targets.
            scores = torch.stack([b.ranks(queries, targets, None, None)[1] for b in blocks]).sum(0)
            scores = self._total(scores)
        counts = [b.ranks(queries, targets, scores, seen)[0] for b in blocks]
        return self._total(torch.stack(counts).sum(0))

    def _for_vectors(self, queries: Tensor) -> Tensor:
        """float32 for compressed vectors."""
        return queries if self._num_items is None else queries.float()

    def _total(self, values: Tensor) -> Tensor:
        return distributed.total(values) if self._is_part else values

    def _blocks(self, queries: Tensor) -> Iterator[_Block]:
        """The vectors, at once where they are a tensor."""
        if self._num_items is not None:
            vectors = self._vectors[:]
            yield _Block(vectors, self._scale, self._before, self._num_items, self._backend)
            return
        num_items = self._vectors.shape[0] - 1
        at_a_time = max(num_items, 1) if isinstance(self._vectors, Tensor) else ITEMS_AT_A_TIME
        for first in range(0, max(num_items, 1), at_a_time):
            rows = slice(first, min(first + at_a_time, num_items) + 1)
            vectors = self._vectors[rows]
            if queries.dtype != torch.promote_types(vectors.dtype, torch.float32):
                vectors = vectors.to(queries.dtype)
            scale = None if self._scale is None else self._scale[rows]
            yield _Block(vectors, scale, self._before + first, len(vectors) - 1, self._backend)


@dataclass(frozen=True)
class _Block:
    """The vectors and scales of consecutive items, as `ssept_ext.ops.top_k` takes them, after `before` others."""

    vectors: Tensor
    scale: Tensor | None
    before: int
    num_items: int
    backend: Backend

    def best(
        self, queries: Tensor, k: int, seen: Histories | None, candidates: Tensor | None
    ) -> Best:
        """As `Catalogue.best`, of up to k items; scores are NaN in a row with one that is not finite."""
        num_ranked = self.num_items
        if candidates is not None:
            candidates = self._numbers(candidates)
            candidates = candidates[candidates != 0]
            num_ranked = len(candidates)
        items, scores = ops.top_k(
            queries,
            self.vectors,
            min(k, num_ranked),
            self.num_items,
            *self._seen(seen),
            candidates,
            self.scale,
            backend=self.backend,
        )
        if self.before:
            items = torch.where(items == 0, 0, items + self.before)
        return Best(items, scores)

    def ranks(
        self,
        queries: Tensor,
        targets: Tensor,
        target_scores: Tensor | None,
        seen: Histories | None,
    ) -> tuple[Tensor, Tensor]:
        """(m, 2) as `Catalogue.ranks`, and (m,) the targets' scores; if these are not given, 0 for one of others."""
        return ops.item_ranks(
            queries,
            self.vectors,
            self._numbers(targets),
            self.num_items,
            target_scores,
            *self._seen(seen),
            self.scale,
            backend=self.backend,
        )

    def _seen(self, seen: Histories | None) -> tuple[Tensor | None, Tensor | None]:
        if seen is None:
            return None, None
        device = self.vectors.device
        items, offsets = torch.from_numpy(seen.items), torch.from_numpy(seen.offsets)
        return self._numbers(items.to(device)), offsets.to(device)

    def _numbers(self, items: Tensor) -> Tensor:
        """Number items as the rows of this block; 0 for those of others."""
        rows = items - self.before
        return torch.where((rows < 1) | (rows > self.num_items), 0, rows)


def _unchanged(model: SequentialRecommender, table: CompressedTable) -> CompressedTable:
    if table.version != model.version():
        raise ValueError(
            "the model has changed since compress: call compress again on the model it came from"
        )
    return table


def inverse_norms(rows: Tensor) -> Tensor:
    """Return (R,) inverse lengths of vectors, float32 or wider; 1 for zero vectors."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=wide)
    return norms.where(norms != 0, 1).reciprocal()


def _merged(found: Sequence[Best], k: int) -> Best:
    """The k best of all, where each has ranked items after those before it; 0 and -inf where there are fewer."""
    items, scores = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    missing = max(k - scores.shape[1], 0)
    items, scores = F.pad(items, (0, missing)), F.pad(scores, (0, missing), value=-math.inf)
    # Stable, so that of equal ones the lower id stays first. NaN is first of all.
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Best(items.gather(1, order[:, :k]), scores[:, :k])


def check_finite(finite: Tensor) -> None:
    """Raise a ValueError that says that the model has diverged, unless `finite` is true."""
    if not finite.item():
        raise ValueError(
            "scores are not finite: the model's parameters hold NaN or infinite values"
        )
