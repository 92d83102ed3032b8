"""Where the held-out item of each user ranks among all items, and the metrics that follow from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssept_ext.data.column_files import Columns, write_columns
from ssept_ext.data.frames import to_frame
from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.evaluation.candidates import Split
from ssept_ext.evaluation.metrics import Ties, hr, mean_gain, ndcg, reciprocal
from ssept_ext.evaluation.targets import Targets
from ssept_ext.utils.checks import check_at_least, shown


@dataclass(frozen=True)
class FullMetrics:
    """Ranking metrics over the whole catalogue, averaged over the users or events, each with one relevant item.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=data.itemnum, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> metrics = model.evaluate_full(data, ks=[5, 10])
    >>> metrics.num_users, sorted(metrics.ndcg)
    (20, [5, 10])
    """

    num_users: int
    """Number of users evaluated."""
    hr: dict[int, float]
    """Hit rate at each k; with one relevant item, it equals recall."""
    ndcg: dict[int, float]
    """NDCG at each k."""
    map: dict[int, float]
    """MAP at each k: with one relevant item, the reciprocal rank if the rank is at most k, else 0."""
    coverage: dict[int, float]
    """Share of the catalogue that is among the k best items of at least one user, for each k."""
    mrr: float
    """Mean reciprocal rank, without a cut-off."""
    num_events: int
    """Number of events that were to be found: one for each user, unless other `targets` were asked for."""


@dataclass(frozen=True, eq=False)
class HeldOutRanks:
    """Where the held-out item of each user ranks among all items: what `evaluate_ranks` returns.

    Users and items are numbers of the model; frames and files have raw ids instead where these are known.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=data.itemnum, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> ranks = model.evaluate_ranks(data, k=10)
    >>> ranks.metrics([5, 10]) == model.evaluate_full(data, ks=[5, 10])
    True
    >>> frame = ranks.to_frame()
    >>> list(frame), len(frame)
    (['user', 'item', 'rank'], 20)
    """

    split: Split
    """Which held-out item was to be found."""
    targets: Targets
    """Which events of the part were to be found: the n rows here are these."""
    ties: Ties
    """Where items with the score of the held-out item rank."""
    exclude_seen: bool
    """Whether the items of the input were left out of the ranking."""
    num_items: int
    """Number of items that were ranked, 1 to this, those of the input included."""
    users: IntArray
    """(n,) users, ascending; distinct if `targets` is "next"."""
    items: IntArray
    """(n,) the held-out item of each."""
    ranks: IntArray
    """(n, 1) its rank, from 0; with ties="mean", (n, 2) the best and the worst, which stand for all in between."""
    best: IntArray
    """(n, k + 1) the best items that are not left out, best first and equal ones by number; 0 where there are no more.

    k is that of `evaluate_ranks`; of fewer items than k + 1, there are all."""
    user_ids: IdMap | None = None
    """Raw ids of the users; None if there are none."""
    item_ids: IdMap | None = None
    """Raw ids of the items; None if there are none."""

    @property
    def _most(self) -> int:
        """The k of `evaluate_ranks`, or the number of items."""
        kept: int = self.best.shape[1]
        return kept if kept == self.num_items else kept - 1

    def metrics(self, ks: Sequence[int]) -> FullMetrics:
        """Average over the rows, at each cut-off k.

        Raises
        ------
        TypeError, ValueError
            If `ks` are not integers from 1 to the k of `evaluate_ranks`.
        """
        ks = check_cutoffs(ks)
        if self._most < self.num_items:  # beyond, coverage is not known
            ks = [check_at_least("each of ks", k, 1, self._most) for k in ks]
        ranks = torch.from_numpy(self.ranks)

        def at_each_k(gain: Callable[..., Tensor]) -> dict[int, float]:
            return {k: mean_gain(ranks, partial(gain, k=k)) for k in ks}

        return FullMetrics(
            num_users=len(np.unique(self.users)),
            hr=at_each_k(hr),
            ndcg=at_each_k(ndcg),
            map=at_each_k(reciprocal),
            coverage={
                k: int(np.count_nonzero(np.unique(self.best[:, :k]))) / self.num_items for k in ks
            },
            mrr=mean_gain(ranks, reciprocal),
            num_events=len(self.users),
        )

    def columns(self) -> Columns:
        """Return the columns user, item (the held-out one) and rank, from 1; with ties="mean", also worst_rank."""
        ranks = dict(zip(("rank", "worst_rank"), self.ranks.T + 1, strict=False))
        return {**self._decoded(self.users, self.items), **ranks}

    def to_frame(self) -> Any:
        """Return `columns` as a data frame, of pandas, Polars or PyArrow, whichever is installed first."""
        return to_frame(self.columns())

    def lists(self, k: int | None = None) -> Any:
        """Return the list of the k best items of each user, in which the held-out item is where it ranks.

        If another item has the same score as the held-out item, the place of the latter is that of its rank. An item of
        the input, if it is the held-out item, is in the list although others of the input are not. So the metrics of
        other packages agree with `metrics`.

        Parameters
        ----------
        k
            Length of the lists, by default that of `evaluate_ranks`.

        Returns
        -------
        data frame
            Columns user, item and rank (from 1); the users in order, each with the best item first, and fewer than k of
            a user who has not as many.

        Raises
        ------
        ValueError
            If k is out of range, or the ranks are those of ties="mean" or of several events of a user.
        """
        k = check_at_least("k", self._most if k is None else k, 1, self._most)
        if self.targets != "next":
            raise ValueError(
                f'lists need one item of each user, which targets="{self.targets}" does not give'
            )
        if self.ranks.shape[1] > 1:
            raise ValueError(
                'lists need one rank of each user, which ties="mean" does not give: evaluate with another'
            )
        is_target = self.best == self.items[:, None]
        # The others in order; the item to find goes to the end, beyond the places that are read.
        order = np.argsort(is_target, 1, kind="stable")
        others = np.take_along_axis(self.best, order, 1)
        place = np.arange(k)
        # Items after the held-out one move by a place.
        lists = np.take_along_axis(others, place - (place > self.ranks), 1)
        lists = np.where(place == self.ranks, self.items[:, None], lists)
        row, column = np.nonzero(lists)
        return to_frame({**self._decoded(self.users[row], lists[row, column]), "rank": column + 1})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `columns` to a file: to Parquet if its name ends in .parquet, to CSV if in .csv. UUIDs become text.

        Raises
        ------
        ValueError
            If its name ends in neither.
        ImportError
            If pyarrow, which writes Parquet, is not installed; it comes with `ssept_ext[data]`.
        OSError
            If the file cannot be written.
        """
        write_columns(path, [self.columns()])

    def _decoded(self, users: IntArray, items: IntArray) -> Columns:
        return {
            "user": users if self.user_ids is None else self.user_ids.decode(users),
            "item": items if self.item_ids is None else self.item_ids.decode(items),
        }


def check_cutoffs(ks: Sequence[int]) -> list[int]:
    """Return cut-offs as a list; a TypeError or ValueError says what is wrong with them."""
    if not isinstance(ks, Iterable):
        raise TypeError(f"ks must be a sequence of cut-offs, got {shown(ks)}")
    checked = [check_at_least("each of ks", k, 1) for k in ks]
    if not checked:
        raise ValueError("ks must have at least one cut-off")
    return checked
