"""Ranks of held-out items among sampled negatives, as recommenders measures."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.packed import last_events
from ssept_ext.evaluation.candidates import (
    EvaluationCandidates,
    Exclude,
    Split,
    check_dataset_fits,
    draw_candidates,
)
from ssept_ext.evaluation.metrics import ndcg_and_hr, ranks_of_first
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ranking.catalogue import scoring
from ssept_ext.ranking.top_k import check_finite
from ssept_ext.utils.checks import check_at_least


def rank_candidates(
    model: SequentialRecommender, trials: EvaluationCandidates, eval_batch_size: int = 256
) -> tuple[float, float]:
    """Let the model rank the candidates of `trials`; (NDCG@10, HR@10) averaged over the users.

    Where `torch.distributed` is initialised, so that all processes must call it, each ranks for some of
    the users, and all get the figures of one process. The model computes in evaluation mode and is left in
    the mode it was in.

    Raises
    ------
    ValueError
        If `eval_batch_size` is below 1, or a score is not finite (a NaN must never rank).
    """
    return ndcg_and_hr(_ranks(model, trials, eval_batch_size, 1)[:, 0])


def _ranks(
    model: SequentialRecommender, trials: EvaluationCandidates, eval_batch_size: int, n_repeats: int
) -> Tensor:
    """(n, n_repeats) ranks of the held-out item, among one group of the negatives after the other."""
    check_at_least("eval_batch_size", eval_batch_size, 1)
    ranks = [torch.zeros(0, dtype=torch.int64, device=model.device)]
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    mine = distributed.rank_slice(len(trials.candidates), eval_batch_size)
    with scoring(model):
        for start in range(mine.start, mine.stop, eval_batch_size):
            rows = slice(start, min(start + eval_batch_size, mine.stop))
            batch = last_events(trials.inputs, rows, model.seq_max_len).to(model.device)
            candidates = torch.from_numpy(trials.candidates[rows]).to(model.device)
            scores = model.score(batch, candidates, user_part=False)
            finite &= scores.isfinite().all()
            groups = scores[:, 1:].view(len(scores), n_repeats, -1)
            of_first = scores[:, :1, None].expand(-1, n_repeats, 1)
            ranks.append(ranks_of_first(torch.cat([of_first, groups], 2).flatten(0, 1)))
    parts, all_finite = zip(
        *distributed.gather((torch.cat(ranks).cpu(), finite.cpu())), strict=True
    )
    check_finite(torch.stack(all_finite).all())
    return torch.cat(parts).view(-1, n_repeats)


def evaluate(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
) -> tuple[float, float]:
    """(NDCG@10, HR@10) of the test item among `model.num_neg_test` negatives; see `draw_trials`, `measure`.

    Equal seeds give equal users and negatives, whatever `eval_batch_size`; None draws new ones.

    Raises
    ------
    ValueError
        As `draw_trials`, `measure` and `check_dataset_fits`.
    """
    return _evaluate(model, dataset, "test", seed, eval_batch_size, exclude)


def evaluate_valid(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
) -> tuple[float, float]:
    """As `evaluate`, for the validation item."""
    return _evaluate(model, dataset, "valid", seed, eval_batch_size, exclude)


def _evaluate(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    split: Split,
    seed: int | None,
    eval_batch_size: int,
    exclude: Exclude,
) -> tuple[float, float]:
    check_dataset_fits(model, dataset)
    trials = draw_candidates(
        dataset, split, num_neg_test=model.num_neg_test, seed=_same_seed(seed), exclude=exclude
    )
    return rank_candidates(model, trials, eval_batch_size)


def _same_seed(seed: int | None) -> int:
    """A seed that all processes have, a new one for None."""
    return distributed.broadcast_from_rank0(lambda: secrets.randbits(63)) if seed is None else seed


@dataclass(frozen=True)
class RepeatedMetrics:
    """NDCG@10 and HR@10 over repeated draws of the negatives."""

    ndcg_mean: float
    ndcg_std: float
    """Standard deviation of one draw's NDCG@10 (divisor n_repeats - 1)."""
    hr_mean: float
    hr_std: float


def evaluate_repeated(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    n_repeats: int = 10,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
    split: Split = "test",
) -> RepeatedMetrics:
    """Measure as `evaluate` does with `n_repeats` draws of the negatives: how much is the draw's luck?

    The users are the same in all repeats and are encoded once. The spread says nothing about other
    trainings or other users.

    Raises
    ------
    ValueError
        As `evaluate`, and if `n_repeats` is below 2.
    """
    check_at_least("n_repeats", n_repeats, 2)
    check_dataset_fits(model, dataset)
    num_negatives = n_repeats * model.num_neg_test
    trials = draw_candidates(
        dataset, split, num_neg_test=num_negatives, seed=_same_seed(seed), exclude=exclude
    )
    ranks = _ranks(model, trials, eval_batch_size, n_repeats)
    ndcg, hr = np.array([ndcg_and_hr(repeat) for repeat in ranks.unbind(1)]).T
    return RepeatedMetrics(
        ndcg_mean=float(ndcg.mean()),
        ndcg_std=float(ndcg.std(ddof=1)),
        hr_mean=float(hr.mean()),
        hr_std=float(hr.std(ddof=1)),
    )


def evaluate_popularity(
    dataset: SASRecDataSet,
    seed: int | None = None,
    num_neg_test: int = 100,
    exclude: Exclude = "train",
    split: Split = "test",
) -> tuple[float, float]:
    """(NDCG@10, HR@10) of ranking by the number of training events; the floor a model must beat.

    Given the model's seed and `num_neg_test` it ranks the same candidates of the same users.

    Raises
    ------
    ValueError
        As `draw_candidates`.
    """
    trials = draw_candidates(dataset, split, num_neg_test=num_neg_test, seed=seed, exclude=exclude)
    events = dataset.histories("train").items
    popularity = np.bincount(events, minlength=dataset.itemnum + 1)
    return ndcg_and_hr(ranks_of_first(torch.from_numpy(popularity[trials.candidates])))
