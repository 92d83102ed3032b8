"""How far metrics would be from their values with other users: bootstrap intervals, and those of differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.evaluation.metrics import gain_of_each, hr, ndcg, reciprocal
from ssept_ext.evaluation.ranks import HeldOutRanks, check_cutoffs
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.options import Range, check_number

KS = (1, 5, 10, 20)
"""Default cut-offs."""

_COUNTS_AT_A_TIME = 1 << 22
"""Largest number of counts that are drawn together: 32 MiB, whatever the number of users."""

_CONFIDENCE = Range(0, 1, open_low=True, open_high=True)


class Interval(NamedTuple):
    """A mean over users or events, and a confidence interval of it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Comparison(NamedTuple):
    """A metric of two models for the same users."""

    first: float
    """Mean of the first model."""
    second: float
    """Mean of the second model."""
    difference: Interval
    """The second minus the first, user by user."""


def metric_intervals(
    ranks: HeldOutRanks,
    ks: Sequence[int] = KS,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return metrics with bootstrap intervals over users, bias-corrected and accelerated (BCa; Efron, 1987).

    The users are resampled with replacement `num_resamples` times, each with all of the user's events. An interval says
    where the metric would be for other users of the same kind. It does not say how much another training of the model
    would differ. Coverage is not a mean over users, and has no such interval. With less than a hundred users, or a few
    hits, intervals are too narrow.

    Parameters
    ----------
    ranks
        From `evaluate_ranks`.
    ks
        Cut-offs.
    confidence
        In (0, 1).
    num_resamples
        At least 1. Time grows with them and with the number of distinct ranks, of a comparison: of pairs of ranks.
    seed
        Any integer from 0; equal seeds give equal intervals.

    Returns
    -------
    dict[str, Interval]
        By metric: "HR@k", "NDCG@k" and "MRR@k" (`FullMetrics.map`) of each k, and "MRR", without a cut-off.

    Raises
    ------
    ValueError
        If an argument is out of range; names it.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=data.itemnum, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> intervals = metric_intervals(model.evaluate_ranks(data), [10])
    >>> list(intervals)
    ['HR@10', 'NDCG@10', 'MRR@10', 'MRR']
    """
    totals = _totals(ranks, ranks.ranks, lambda rows: _gains(rows, check_cutoffs(ks)))
    return _bootstrap(totals, confidence, num_resamples, seed)


def compare_ranks(
    first: HeldOutRanks,
    second: HeldOutRanks,
    ks: Sequence[int] = KS,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare two models user by user, with bootstrap intervals of the differences.

    An interval that does not hold 0 says that the difference is more than luck with these users. Because most users are
    as hard for one model as for the other, it is narrower than the intervals of the two models let expect.

    Parameters
    ----------
    first, second
        From `evaluate_ranks`, for the same users, held-out items and options. Users are paired by raw ids if both have
        some, else by their numbers.
    ks, confidence, num_resamples, seed
        As for `metric_intervals`.

    Returns
    -------
    dict[str, Comparison]
        By metric, as of `metric_intervals`.

    Raises
    ------
    ValueError
        If the ranks are not of the same users, items and options (says what differs), or an argument is out of range.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=data.itemnum, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> ranks = model.evaluate_ranks(data)
    >>> compare_ranks(ranks, ranks, [10])["HR@10"].difference
    Interval(mean=0.0, low=0.0, high=0.0)
    """
    ks = check_cutoffs(ks)
    pairs = np.concatenate([first.ranks, second.ranks[_partners(first, second)]], 1)

    def gains(rows: IntArray) -> dict[str, NDArray[np.float64]]:
        one, other = (_gains(half, ks) for half in np.split(rows, 2, axis=1))
        return {name: other[name] - one[name] for name in one}

    found = _bootstrap(_totals(first, pairs, gains), confidence, num_resamples, seed)
    one, other = (_gains(half, ks) for half in np.split(pairs, 2, axis=1))
    return {
        name: Comparison(float(one[name].mean()), float(other[name].mean()), found[name])
        for name in one
    }


class _Totals(NamedTuple):
    """What users add to metrics; users who add the same are one of m kinds."""

    gains: dict[str, NDArray[np.float64]]
    """(m,) by metric: the sum over the events of one user."""
    events: IntArray
    """(m,) number of events of one user."""
    counts: IntArray
    """(m,) number of users."""

    def mean(self, name: str) -> float:
        """The metric, averaged over all events."""
        return float(self.gains[name] @ self.counts / (self.events @ self.counts))


def _totals(
    of: HeldOutRanks, ranks: IntArray, gains: Callable[[IntArray], dict[str, NDArray[np.float64]]]
) -> _Totals:
    """Add up the gains of each user's ranks (n, columns)."""
    if of.targets == "next":  # an event of each user, of which many have the same rank
        rows, counts = np.unique(ranks, axis=0, return_counts=True)
        return _Totals(gains(rows), np.ones_like(counts), counts)
    of_events = gains(ranks)
    _, user, events = np.unique(of.users, return_inverse=True, return_counts=True)
    sums = [np.bincount(user, gain) for gain in of_events.values()]
    kinds, counts = np.unique(np.stack([*sums, events], 1), axis=0, return_counts=True)
    columns = dict(zip(of_events, kinds.T, strict=False))
    return _Totals(columns, kinds[:, -1].astype(np.int64), counts)


def _gains(ranks: IntArray, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """The metrics of some ranks, each of the shape (n,)."""
    rows = torch.from_numpy(ranks)
    metrics = {
        f"{name}@{k}": partial(gain, k=k)
        for k in ks
        for name, gain in (("HR", hr), ("NDCG", ndcg), ("MRR", reciprocal))
    }
    return {
        name: gain_of_each(rows, gain).numpy()
        for name, gain in (metrics | {"MRR": reciprocal}).items()
    }


def _bootstrap(
    totals: _Totals, confidence: float, num_resamples: int, seed: int
) -> dict[str, Interval]:
    """Intervals of means over events, by resampling users."""
    confidence = check_number("confidence", confidence, float, _CONFIDENCE)
    num_resamples = check_at_least("num_resamples", num_resamples, 1)
    rng = np.random.default_rng(check_at_least("seed", seed, 0, math.inf))
    counts, num_users = totals.counts, totals.counts.sum()
    values = np.stack([*totals.gains.values(), totals.events], 1)
    # How many users of each kind are drawn is all that matters.
    at_a_time = max(_COUNTS_AT_A_TIME // len(counts), 1)
    sums = np.concatenate(
        [
            rng.multinomial(num_users, counts / num_users, min(at_a_time, num_resamples - done))
            @ values
            for done in range(0, num_resamples, at_a_time)
        ]
    )
    means = (sums[:, :-1] / sums[:, -1:]).T
    return {
        name: Interval(totals.mean(name), *_ends(totals, name, of_resamples, confidence))
        for name, of_resamples in zip(totals.gains, means, strict=True)
    }


def _ends(
    totals: _Totals, name: str, means: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """Quantiles of the means of resamples, shifted for their bias and skewness: of BCa (Efron, 1987)."""
    normal, mean = NormalDist(), totals.mean(name)
    # By how much a user moves the mean, up to a factor.
    influence = totals.gains[name] - mean * totals.events
    num_users = totals.counts.sum()
    variance = influence**2 @ totals.counts / num_users
    if not variance:
        return mean, mean
    skewness = (influence**3 @ totals.counts / num_users) / variance**1.5
    acceleration = skewness / (6 * math.sqrt(num_users))
    below = (np.mean(means < mean) + np.mean(means <= mean)) / 2
    bias = normal.inv_cdf(min(max(float(below), 1e-6), 1 - 1e-6))
    low, high = (
        normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        for z in (normal.inv_cdf((1 - confidence) / 2), normal.inv_cdf((1 + confidence) / 2))
    )
    found: list[float] = np.quantile(means, [low, high]).tolist()
    return found[0], found[1]


def _partners(first: HeldOutRanks, second: HeldOutRanks) -> IntArray:
    """The rows of `second` in the order of the users of `first`; a ValueError says why they cannot be paired."""
    for name in ("split", "targets", "ties", "exclude_seen", "num_items"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise ValueError(
                f"ranks must be of the same {name} to be compared, got {one} and {other}"
            )
    users = _in_ids_of(first.user_ids, second.user_ids, second.users)
    items = _in_ids_of(first.item_ids, second.item_ids, second.items)
    order = np.argsort(users, kind="stable")
    if not np.array_equal(users[order], first.users):
        both = len(np.intersect1d(users, first.users))
        raise ValueError(
            f"ranks must be of the same users to be compared: {both} are in both, of {len(first.users)} and "
            f"{len(users)}"
        )
    differ = items[order] != first.items
    if differ.any():
        raise ValueError(
            f"ranks must be of the same held-out items to be compared: those of {differ.sum()} of {len(users)} users "
            f"differ"
        )
    return order


def _in_ids_of(ids: IdMap | None, others: IdMap | None, numbers: IntArray) -> IntArray:
    """Numbers of other raw ids as those of `ids`, 0 where they are unknown; the same numbers without raw ids."""
    if ids is None or others is None or ids == others:
        return numbers
    return ids.encode(others.decode(numbers), unknown="zero")
