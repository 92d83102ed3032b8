"""Bootstrap intervals hold the truth as often as they say, of metrics and of differences between two models."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from ssept_ext import IdMap
from ssept_ext.evaluation import intervals
from ssept_ext.evaluation.intervals import compare_ranks, metric_intervals
from ssept_ext.evaluation.ranks import HeldOutRanks

NUM_ITEMS = 1000


def ranks_of(ranks, **changes):
    """Users 1, 2, … whose held-out items rank so."""
    users = np.arange(1, len(ranks) + 1)
    ranks = np.asarray(ranks).reshape(len(users), -1)
    made = HeldOutRanks(
        split="test",
        targets="next",
        ties="pessimistic",
        exclude_seen=True,
        num_items=NUM_ITEMS,
        users=users,
        items=users % NUM_ITEMS + 1,
        ranks=ranks,
        best=np.zeros((len(users), NUM_ITEMS), np.int64),
    )
    return replace(made, **changes)


POSSIBLE = np.array([*range(15), *range(15, NUM_ITEMS, 40)])
LIKELY = 1 / (POSSIBLE + 15) / (1 / (POSSIBLE + 15)).sum()
"""Ranks, and how likely each is: few are small, as in practice."""


def drawn(rng, size):
    return rng.choice(POSSIBLE, size, p=LIKELY)


def improved(rng, ranks):
    """What a model has that is alike for most users, and better for a fifth of them."""
    return np.where(rng.random(len(ranks)) < 0.2, ranks // 3, ranks)


def true_means(ranks=POSSIBLE):
    return {
        "HR@10": LIKELY @ (ranks < 10),
        "NDCG@10": LIKELY @ ((ranks < 10) / np.log2(ranks + 2)),
        "MRR": LIKELY @ (1 / (ranks + 1)),
    }


def how_often(truth, intervals_of_seed, repetitions=200):
    """The shares of repetitions in which the intervals hold the truth."""
    held = dict.fromkeys(truth, 0)
    for seed in range(repetitions):
        found = intervals_of_seed(seed)
        for name, value in truth.items():
            held[name] += found[name].low <= value <= found[name].high
    return np.array(list(held.values())) / repetitions


def test_an_interval_of_95_percent_holds_the_true_value_in_95_percent_of_repetitions():
    rng = np.random.default_rng(0)

    shares = how_often(
        true_means(),
        lambda seed: metric_intervals(
            ranks_of(drawn(rng, 400)), [10], num_resamples=400, seed=seed
        ),
    )

    assert ((shares >= 0.90) & (shares <= 0.99)).all(), shares


def test_an_interval_of_a_difference_holds_it_as_often_although_users_are_alike_for_both_models():
    rng = np.random.default_rng(1)
    one, better = true_means(), true_means(POSSIBLE // 3)

    def found(seed):
        ranks = drawn(rng, 400)
        second = ranks_of(improved(rng, ranks))
        compared = compare_ranks(ranks_of(ranks), second, [10], num_resamples=400, seed=seed)
        return {name: comparison.difference for name, comparison in compared.items()}

    shares = how_often({name: 0.2 * (better[name] - one[name]) for name in one}, found)

    assert ((shares >= 0.90) & (shares <= 0.99)).all(), shares


def test_means_are_those_of_the_metrics():
    ranks = ranks_of(drawn(np.random.default_rng(0), 500))

    found = metric_intervals(ranks, [1, 10])

    metrics = ranks.metrics([1, 10])
    assert list(found) == [*("HR@1", "NDCG@1", "MRR@1"), *("HR@10", "NDCG@10", "MRR@10"), "MRR"]
    expected = {"HR@1": metrics.hr[1], "NDCG@10": metrics.ndcg[10], "MRR@10": metrics.map[10]}
    for name, value in (expected | {"MRR": metrics.mrr}).items():
        assert found[name].mean == pytest.approx(value, rel=1e-12)
        assert found[name].low < value < found[name].high


def test_ends_are_those_of_another_implementation_of_the_bootstrap():
    """Both vary by chance, by less than the tolerance; the ends of other methods are further away."""
    stats = pytest.importorskip("scipy.stats")
    gains = 1 / (drawn(np.random.default_rng(0), 60) + 1)
    options = {"n_resamples": 20_000, "confidence_level": 0.9, "rng": 0}
    expected = stats.bootstrap((gains,), np.mean, method="BCa", **options).confidence_interval
    percentile = stats.bootstrap((gains,), np.mean, method="percentile", **options)

    ranks = ranks_of(np.round(1 / gains - 1).astype(int))
    found = metric_intervals(ranks, [10], confidence=0.9, num_resamples=20_000)

    tolerance = 0.05 * (expected.high - expected.low)
    assert found["MRR"][1:] == pytest.approx(tuple(expected), abs=tolerance)
    assert percentile.confidence_interval.high < expected.high - tolerance


def test_all_orders_of_ties_are_averaged_for_each_user():
    found = metric_intervals(ranks_of([[0, 19], [0, 19]], ties="mean"), [10])

    assert found["HR@10"] == (0.5, 0.5, 0.5)


def test_equal_seeds_give_equal_intervals_whatever_is_drawn_together(monkeypatch):
    ranks = ranks_of(drawn(np.random.default_rng(0), 300))
    together = list(metric_intervals(ranks, seed=5).values())
    monkeypatch.setattr(intervals, "_COUNTS_AT_A_TIME", 1000)

    apart, others = (list(metric_intervals(ranks, seed=seed).values()) for seed in (5, 6))

    np.testing.assert_allclose(apart, together, rtol=1e-9)
    assert np.abs(np.subtract(others, together)).max() > 1e-4


def test_memory_does_not_grow_with_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "_COUNTS_AT_A_TIME", 1 << 14)
    ranks = ranks_of(np.arange(1000).repeat(10))

    tracemalloc.start()
    metric_intervals(ranks, [10], num_resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1000 * 1000 * 8 / 5  # a fifth of all counts


def test_a_comparison_has_both_means_and_second_minus_first():
    first, second = ranks_of([0, 12, 3, 30]), ranks_of([0, 2, 3, 5])

    found = compare_ranks(first, second, [10])["HR@10"]

    assert found[:2] == (0.5, 1.0)
    assert found.difference.mean == 0.5
    assert (found.difference.low, found.difference.high) == (0, 1)


def test_users_are_paired_by_raw_ids_where_models_number_them_differently():
    ids = [f"user-{i}" for i in range(50)]
    ranks = drawn(np.random.default_rng(0), 50)
    first = ranks_of(ranks, user_ids=IdMap(ids), item_ids=IdMap(range(NUM_ITEMS)))
    backwards = replace(
        first,
        user_ids=IdMap(ids[::-1]),
        item_ids=IdMap(range(NUM_ITEMS - 1, -1, -1)),
        items=NUM_ITEMS + 1 - first.items[::-1],
        ranks=first.ranks[::-1],
    )

    found = compare_ranks(first, backwards)

    assert all(comparison.difference == (0, 0, 0) for comparison in found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "valid"}, "ranks must be of the same split to be compared, got test and valid"),
        ({"ties": "optimistic"}, "of the same ties to be compared, got pessimistic and optimistic"),
        ({"exclude_seen": False}, "of the same exclude_seen to be compared, got True and False"),
        ({"num_items": 9}, "of the same num_items to be compared, got 1000 and 9"),
        ({"users": np.array([1, 2, 4])}, "of the same users to be compared: 2 are in both, of 3 a"),
        ({"items": np.array([2, 3, 5])}, "held-out items to be compared: those of 1 of 3 users di"),
    ],
)
def test_rankings_of_something_else_are_not_compared(changes, message):
    first = ranks_of([0, 1, 2])

    with pytest.raises(ValueError, match=message):
        compare_ranks(first, replace(first, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1}, r"confidence must be in \(0, 1\), got 1"),
        ({"num_resamples": 0}, "num_resamples must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"ks": []}, "ks must have at least one cut-off"),
    ],
)
def test_bad_options_are_errors(options, message):
    ranks = ranks_of([0, 1, 2])

    with pytest.raises(ValueError, match=message):
        metric_intervals(ranks, **options)
    with pytest.raises(ValueError, match=message):
        compare_ranks(ranks, ranks, **options)
