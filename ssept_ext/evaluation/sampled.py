"""Ranking of the held-out items among sampled negatives, as in recommenders."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from ssept_ext import distributed
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.packed import last_events
from ssept_ext.evaluation.candidates import (
    MAX_USERS,
    EvaluationCandidates,
    Exclude,
    Split,
    draw_candidates,
)
from ssept_ext.evaluation.metrics import BEATS, Ties, count_above, ndcg_and_hr
from ssept_ext.network.identity import check_ids_of, in_ids_of, times_for
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.ranking.catalogue import check_finite, scoring
from ssept_ext.utils.checks import check_at_least, check_one_of


def rank_candidates(
    model: SequentialRecommender,
    trials: EvaluationCandidates,
    eval_batch_size: int = 256,
    ties: Ties = "pessimistic",
) -> tuple[float, float]:
    """Rank the candidates of each user; return (NDCG@10, HR@10), averaged over the users.

    If `torch.distributed` is initialised, all processes must call this; each ranks for some of the users, and all
    return what a single process would. The model's mode (train or eval) plays no part.

    Parameters
    ----------
    trials
        The users and candidates, from `draw_candidates`.
    eval_batch_size
        Users per forward pass.
    ties
        Negatives that score the same as the held-out item rank above it ("pessimistic"), below it ("optimistic"), or in
        all orders, whose metrics are averaged ("mean").

    Raises
    ------
    ValueError
        If `eval_batch_size` is below 1, `ties` is none of these, a score is not finite, or the candidates' numbers are
        not the model's.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> from ssept_ext.evaluation import draw_candidates
    >>> drawn = draw_candidates(synthetic(num_users=20), "test", num_neg_test=5, seed=0)
    >>> model = SASREC(item_num=480, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> rank_candidates(model, drawn)[1]  # HR@10 of 6 candidates
    1.0
    """
    if trials.dataset is not None:
        check_ids_of(model, trials.dataset)
    return _rank(model, trials, eval_batch_size, ties)


def _rank(
    model: SequentialRecommender, trials: EvaluationCandidates, eval_batch_size: int, ties: Ties
) -> tuple[float, float]:
    """As `rank_candidates`, for candidates whose numbers are the model's."""
    eval_batch_size = check_at_least("eval_batch_size", eval_batch_size, 1)
    check_one_of("ties", ties, get_args(Ties))
    mine = distributed.rank_slice(len(trials.candidates), eval_batch_size)
    starts = [*range(mine.start, mine.stop, eval_batch_size)]
    if is_sharded(model):  # those who have fewer batches help with the others' last one
        most = max(distributed.gather(len(starts)))
        starts += [0] * (most - len(starts))
    at = times_for(model, trials.at, "the data set of the candidates")
    ranks = [torch.zeros(0, len(BEATS[ties]), dtype=torch.int64, device=model.device)]
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    with scoring(model):
        for start in starts:
            rows = slice(start, min(start + eval_batch_size, len(trials.candidates)))
            batch = last_events(trials.inputs, rows, model.seq_max_len, at).to(model.device)
            candidates = torch.from_numpy(trials.candidates[rows]).to(model.device)
            scores = model.score(batch, candidates, user_part=False)
            finite &= scores.isfinite().all()
            ranks.append(count_above(scores[:, 1:], scores[:, :1], ties))
    parts, all_finite = zip(
        *distributed.gather((torch.cat(ranks)[: mine.stop - mine.start].cpu(), finite.cpu())),
        strict=True,
    )
    check_finite(torch.stack(all_finite).all())
    return ndcg_and_hr(torch.cat(parts))


def evaluate(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
    *,
    split: Split = "test",
    ties: Ties = "pessimistic",
    max_users: int | None = MAX_USERS,
) -> tuple[float, float]:
    """Return (NDCG@10, HR@10) of the test item, ranked among `model.num_neg_test` sampled negatives.

    `draw_candidates` says how users and negatives are drawn, `rank_candidates` how they are ranked.

    Parameters
    ----------
    seed
        Equal seeds draw equal users and negatives; None draws new ones.
    eval_batch_size
        Users per forward pass; it does not change the result.
    exclude
        Which of a user's items, besides the one to find, are never negatives: "train" or "all".
    split
        Which held-out item to find: "test" or "valid".
    ties
        Rank of negatives with the score of the held-out item: "pessimistic", "optimistic" or "mean".
    max_users
        Of more users, a random sample of this size is evaluated; None evaluates all.

    Raises
    ------
    ValueError
        If an argument is out of range, no user can be evaluated, the model has no vector for a user or item of the data
        set, or a score is not finite.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> model = SASREC(item_num=480, seq_max_len=8, embedding_dim=4, conv_dims=[4] * 2, num_neg_test=5)
    >>> ndcg, hr = model.evaluate(synthetic(num_users=20), seed=0)
    >>> hr  # of 6 candidates
    1.0
    """
    dataset = in_ids_of(model, dataset)
    trials = draw_candidates(
        dataset,
        split,
        num_neg_test=model.num_neg_test,
        seed=_same_seed(seed),
        exclude=exclude,
        max_users=max_users,
    )
    return _rank(model, trials, eval_batch_size, ties)


def evaluate_valid(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
    **options: Any,
) -> tuple[float, float]:
    """Return (NDCG@10, HR@10) of the validation item; see `evaluate`, whose other keywords are options here, too."""
    return evaluate(model, dataset, seed, eval_batch_size, exclude, split="valid", **options)


@dataclass(frozen=True)
class RepeatedMetrics:
    """NDCG@10 and HR@10 over repeated draws of users and negatives."""

    ndcg_mean: float
    """Mean NDCG@10 of the draws."""
    ndcg_std: float
    """Standard deviation of NDCG@10 over the draws (divisor n_repeats - 1)."""
    hr_mean: float
    """Mean HR@10 of the draws."""
    hr_std: float
    """Standard deviation of HR@10 over the draws (divisor n_repeats - 1)."""


def evaluate_repeated(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    n_repeats: int = 10,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
    **options: Any,
) -> RepeatedMetrics:
    """Evaluate with `n_repeats` draws of users and negatives, to see how much the metrics depend on the draw.

    The draws are those of `evaluate` with the seeds `seed`, `seed + 1`, and so on. If all users are evaluated, only the
    negatives differ. The standard deviation does not include the variation over training runs.

    Parameters
    ----------
    n_repeats
        Number of draws, at least 2.
    seed, eval_batch_size, exclude
        As for `evaluate`.
    options
        Other keywords of `evaluate`: `split`, `ties` and `max_users`.

    Raises
    ------
    ValueError
        If `n_repeats` is below 2, or for the reasons in `evaluate`.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> model = SASREC(item_num=480, seq_max_len=8, embedding_dim=4, conv_dims=[4] * 2, num_neg_test=5)
    >>> evaluate_repeated(model, synthetic(num_users=20), n_repeats=3).hr_mean
    1.0
    """
    n_repeats = check_at_least("n_repeats", n_repeats, 2)
    first = _same_seed(seed)
    dataset = in_ids_of(model, dataset)  # once for all draws
    draws = [
        evaluate(model, dataset, first + repeat, eval_batch_size, exclude, **options)
        for repeat in range(n_repeats)
    ]
    ndcg, hr = np.array(draws).T
    return RepeatedMetrics(
        ndcg_mean=float(ndcg.mean()),
        ndcg_std=float(ndcg.std(ddof=1)),
        hr_mean=float(hr.mean()),
        hr_std=float(hr.std(ddof=1)),
    )


def _same_seed(seed: int | None) -> int:
    """Return the seed or, for None, a fresh one that is the same in all processes."""
    if seed is None:
        return distributed.broadcast_from_rank0(lambda: secrets.randbits(63))
    return check_at_least("seed", seed, 0, math.inf)


def evaluate_popularity(
    dataset: SASRecDataSet,
    seed: int | None = None,
    num_neg_test: int = 100,
    exclude: Exclude = "train",
    split: Split = "test",
    ties: Ties = "pessimistic",
    max_users: int | None = MAX_USERS,
) -> tuple[float, float]:
    """Return (NDCG@10, HR@10) of ranking items by their number of training events, a baseline for any model.

    With the options of a model's evaluation, it ranks the same candidates for the same users.

    Parameters
    ----------
    num_neg_test, seed, exclude, max_users
        As for `draw_candidates`.
    split
        Which held-out item to find: "test" or "valid".
    ties
        As for `rank_candidates`.

    Raises
    ------
    ValueError
        If `ties` is wrong, or for the reasons in `draw_candidates`.

    Examples
    --------
    >>> from ssept_ext.data.synthetic import synthetic
    >>> evaluate_popularity(synthetic(num_users=20), num_neg_test=5)[1]  # HR@10 of 6 candidates
    1.0
    """
    check_one_of("ties", ties, get_args(Ties))
    drawn = draw_candidates(
        dataset, split, num_neg_test=num_neg_test, seed=seed, exclude=exclude, max_users=max_users
    ).candidates
    trained = dataset.histories("train").items
    if dataset.itemnum > len(trained):  # it may be much larger than the number of items
        items, trained = np.unique(trained, return_inverse=True)
        place = np.minimum(np.searchsorted(items, drawn), len(items) - 1)
        drawn = np.where(items[place] == drawn, place, len(items))
    counts = np.bincount(trained, minlength=int(drawn.max()) + 1)
    scores = torch.from_numpy(counts[drawn])
    return ndcg_and_hr(count_above(scores[:, 1:], scores[:, :1], ties))
