"""Ranking of the held-out items among the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, get_args

import torch
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.evaluation.candidates import Split
from ssept_ext.evaluation.metrics import Ties
from ssept_ext.evaluation.ranks import FullMetrics, HeldOutRanks, check_cutoffs
from ssept_ext.evaluation.targets import Targets, ask
from ssept_ext.network.identity import in_ids_of, times_for
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.ranking.catalogue import (
    USERS_AT_A_TIME,
    Catalogue,
    encode_groups,
    scoring,
)
from ssept_ext.ranking.given_scores import GivenScores, ItemScorer, score_groups
from ssept_ext.utils.checks import check_at_least, check_bool, check_one_of

Model: TypeAlias = SequentialRecommender | ItemScorer
"""What ranks all items."""

_COLUMNS = {"optimistic": [0], "pessimistic": [1], "mean": [0, 1]}
"""Which of the best and the worst rank among equal scores are the ranks."""


def evaluate_full(
    model: Model,
    dataset: SASRecDataSet,
    ks: Sequence[int] = (1, 5, 10, 20),
    exclude_seen: bool = True,
    split: Split = "test",
    eval_batch_size: int = 256,
    ties: Ties = "pessimistic",
    targets: Targets = "next",
) -> FullMetrics:
    """Rank the whole catalogue for every user with a training event and a held-out item.

    The input is the training history, followed by the validation part if `split` is "test". The rank of the held-out
    item is the number of other items that score higher or, as `ties` says, the same. If several processes call this
    together, they share the users (of a sharded model, the items), and all return the same metrics. The model's mode
    (train or eval) plays no part.

    Parameters
    ----------
    model
        A model of this package, or anything with a method `score_items`, such as the baselines of
        `ssept_ext.evaluation.baselines`.
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
    targets
        Which events of the part to find: each user's first ("next"); all, given the events before the part ("all"); or
        all, each given all events before it, those of the part included ("successive"). The last two average over
        events, not over users. They are those of *Time to Split* (Gusak et al., RecSys 2025, arXiv 2507.16289).

    Raises
    ------
    ValueError
        If an argument is out of range, no user can be evaluated, an item id is outside 1..itemnum, the model has no
        vector for a user or item, or a score is not finite.
    """
    ks = check_cutoffs(ks)
    return evaluate_ranks(
        model, dataset, max(ks), exclude_seen, split, eval_batch_size, ties, targets
    ).metrics(ks)


def evaluate_ranks(
    model: Model,
    dataset: SASRecDataSet,
    k: int = 20,
    exclude_seen: bool = True,
    split: Split = "test",
    eval_batch_size: int = 256,
    ties: Ties = "pessimistic",
    targets: Targets = "next",
) -> HeldOutRanks:
    """Rank the whole catalogue for every user, as `evaluate_full` does, and return where each user's item ranks.

    Parameters
    ----------
    k
        The largest cut-off of metrics, and length of lists, that can be had from the result.
    model, exclude_seen, split, eval_batch_size, ties, targets
        As for `evaluate_full`.

    Raises
    ------
    ValueError
        For the reasons in `evaluate_full`.
    """
    k = check_at_least("k", k, 1)
    exclude_seen = check_bool("exclude_seen", exclude_seen)
    check_one_of("split", split, get_args(Split))
    eval_batch_size = check_at_least("eval_batch_size", eval_batch_size, 1)
    check_one_of("ties", ties, get_args(Ties))
    check_one_of("targets", targets, get_args(Targets))
    if not isinstance(model, ItemScorer):
        dataset = in_ids_of(model, dataset)
    asked = ask(dataset, split, targets)
    at = times_for(model, asked.at, str(dataset.filename or "dataset"))

    mine = slice(0, len(asked.users))
    if not is_sharded(model):
        mine = distributed.rank_slice(len(asked.users), USERS_AT_A_TIME)
    wanted = torch.from_numpy(asked.items[mine])
    num_best = min(k + 1, dataset.itemnum)
    ranks = wanted.new_zeros(len(wanted), len(_COLUMNS[ties]))
    best = wanted.new_zeros(len(wanted), num_best)
    for block in asked.blocks(mine):
        inputs = asked.inputs(block)
        times = None if at is None else at[block]
        start = block.start - mine.start
        with _rankings(model, inputs, dataset.itemnum, eval_batch_size, times) as (
            all_items,
            groups,
        ):
            for group, queries in groups:
                rows = slice(start + group.start, start + group.stop)
                seen = inputs.part(group) if exclude_seen else None
                found = all_items.ranks(queries, wanted[rows].to(queries.device), seen)
                ranks[rows] = found[:, _COLUMNS[ties]].cpu()
                best[rows] = all_items.best(queries, num_best, seen).items.cpu()
    if not is_sharded(model):
        everywhere = distributed.gather((ranks, best))
        ranks, best = (torch.cat(parts) for parts in zip(*everywhere, strict=True))
    known: KnownHistories | None = getattr(model, "known", None)  # whose numbers are the model's
    ids = [
        getattr(dataset, name) or getattr(known, name, None) for name in ("user_ids", "item_ids")
    ]
    return HeldOutRanks(
        split=split,
        targets=targets,
        ties=ties,
        exclude_seen=exclude_seen,
        num_items=dataset.itemnum,
        users=asked.users,
        items=asked.items,
        ranks=ranks.numpy(),
        best=best.numpy(),
        user_ids=ids[0],
        item_ids=ids[1],
    )


@contextmanager
def _rankings(
    model: Model, inputs: Histories, num_items: int, batch_size: int, at: IntArray | None
) -> Iterator[tuple[Catalogue | GivenScores, Iterator[tuple[slice, Tensor]]]]:
    """Give the items to rank, those of the data set only, and the queries of groups of users with their rows."""
    if isinstance(model, ItemScorer):
        with torch.inference_mode():
            yield GivenScores(), score_groups(model, inputs, num_items)
    else:
        with scoring(model):
            encoded = encode_groups(model, inputs, batch_size, at)
            # The model's table may be larger.
            yield Catalogue.of(model, num_items), ((rows, queries) for rows, queries, _ in encoded)
