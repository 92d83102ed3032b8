"""Ranking of the held-out items among the whole catalogue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.evaluation.candidates import (
    Split,
    check_items,
    input_histories,
    measurable_users,
    times_asked,
)
from ssept_ext.evaluation.metrics import BEATS, Ties, count_above, hr, mean_gain, ndcg, reciprocal
from ssept_ext.network.identity import in_ids_of, times_for
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.ranking.catalogue import (
    USERS_AT_A_TIME,
    Catalogue,
    SeenItems,
    encode_groups,
    scoring,
)
from ssept_ext.ranking.top_k import TopK
from ssept_ext.utils.checks import check_at_least, check_bool, check_one_of, shown


@dataclass(frozen=True)
class FullMetrics:
    """Ranking metrics over the whole catalogue, averaged over the users, each with one relevant item.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=data.itemnum, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> metrics = evaluate_full(model, data, ks=[5, 10])
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


def evaluate_full(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    ks: Sequence[int] = (1, 5, 10, 20),
    exclude_seen: bool = True,
    split: Split = "test",
    eval_batch_size: int = 256,
    ties: Ties = "pessimistic",
) -> FullMetrics:
    """Rank the whole catalogue for every user with a training event and a held-out item.

    The input is the training history, followed by the validation item if `split` is "test". The rank of the held-out
    item is the number of other items that score higher or, as `ties` says, the same. If several processes call this
    together, they share the users (of a sharded model, the items), and all return the same metrics. The model's mode
    (train or eval) plays no part.

    Parameters
    ----------
    ks
        Cut-offs k of the metrics.
    exclude_seen
        Whether to leave the items of the input out of the ranking, except for the held-out item.
    split
        Which held-out item to find: "test" or "valid".
    eval_batch_size
        Users per forward pass.
    ties
        Items that score the same as the held-out item rank above it ("pessimistic"), below it ("optimistic"), or in all
        orders, whose metrics are averaged ("mean").

    Raises
    ------
    ValueError
        If an argument is out of range, no user can be evaluated, an item id is outside 1..itemnum, the model has no
        vector for a user or item, or a score is not finite.
    """
    if not isinstance(ks, Iterable):
        raise TypeError(f"ks must be a sequence of cut-offs, got {shown(ks)}")
    ks = [check_at_least("each of ks", k, 1) for k in ks]
    if not ks:
        raise ValueError("ks must have at least one cut-off")
    exclude_seen = check_bool("exclude_seen", exclude_seen)
    check_one_of("split", split, get_args(Split))
    eval_batch_size = check_at_least("eval_batch_size", eval_batch_size, 1)
    check_one_of("ties", ties, get_args(Ties))
    dataset = in_ids_of(model, dataset)
    users = measurable_users(dataset, split)
    inputs = input_histories(dataset, users, split)
    held_out = dataset.histories(split, users)
    for histories in (inputs, held_out):
        check_items(histories, dataset.itemnum)

    mine = slice(0, len(users))
    if not is_sharded(model):
        mine = distributed.rank_slice(len(users), USERS_AT_A_TIME)
    at = times_for(model, times_asked(inputs, held_out), str(dataset.filename or "dataset"))
    at = None if at is None else at[mine]
    inputs, targets = inputs.part(mine), torch.from_numpy(held_out.oldest()[mine])
    num_best = min(max(ks), dataset.itemnum)
    ranks = targets.new_zeros(len(targets), len(BEATS[ties]))
    best = targets.new_zeros(len(targets), num_best)
    with scoring(model):
        # Rank the items of the data set only: the model's table may be larger.
        catalogue = Catalogue.of(model, dataset.itemnum)
        for rows, queries, _ in encode_groups(model, inputs, eval_batch_size, at):
            seen = SeenItems(inputs, rows, model.device) if exclude_seen else None
            top = TopK(len(queries), num_best, like=queries)
            of_rows = targets[rows].to(model.device)
            ranks[rows] = _full_ranks(queries, catalogue, of_rows, seen, top, ties).cpu()
            catalogue.complete(top)
            best[rows] = top.items.cpu()
    if not is_sharded(model):
        everywhere = distributed.gather((ranks, best))
        ranks, best = (torch.cat(parts) for parts in zip(*everywhere, strict=True))

    def at_each_k(gain: Callable[..., Tensor]) -> dict[int, float]:
        return {k: mean_gain(ranks, partial(gain, k=k)) for k in ks}

    return FullMetrics(
        num_users=len(users),
        hr=at_each_k(hr),
        ndcg=at_each_k(ndcg),
        map=at_each_k(reciprocal),
        coverage={k: int(np.count_nonzero(np.unique(best[:, :k]))) / dataset.itemnum for k in ks},
        mrr=mean_gain(ranks, reciprocal),
    )


def _full_ranks(
    queries: Tensor,
    catalogue: Catalogue,
    targets: Tensor,
    seen: SeenItems | None,
    top: TopK,
    ties: Ties,
) -> Tensor:
    """Rank the targets as `count_above` does, and update `top` with all blocks."""
    target_scores = queries.new_zeros(len(queries), 1)
    # Targets are scored by the same matrix products as the other items: a product of another shape may round
    # differently, and break ties.
    for first, scores in catalogue.blocks(queries):
        row, column = catalogue.find(targets, first, scores)
        target_scores[row, 0] = scores[row, column]
    target_scores = catalogue.total(target_scores)
    ranks = targets.new_zeros(len(targets), len(BEATS[ties]))
    for first, scores in catalogue.blocks(queries):
        if seen is not None:
            seen.hide(first, scores)
        top.update(first, scores)
        row, column = catalogue.find(targets, first, scores)
        scores[row, column] = -math.inf  # do not count the target itself
        ranks += count_above(scores, target_scores, ties)
    return catalogue.total(ranks)
