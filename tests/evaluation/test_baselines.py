"""Rankings that need no training, and any others by scores, against loops over users and items."""

from collections import Counter

import numpy as np
import pytest
import torch

from ssept_ext import SASRecDataSet
from ssept_ext.data.histories import Histories
from ssept_ext.evaluation import (
    ItemNeighbours,
    Popularity,
    baselines,
    evaluate_full,
    evaluate_ranks,
)
from ssept_ext.ranking import given_scores

NUM_ITEMS = 70


@pytest.fixture
def dataset():
    """50 users with 3 to 25 events, some of them repeated, and times in any order of the users."""
    rng = np.random.default_rng(0)
    likely = 1 / np.arange(1, NUM_ITEMS + 1)
    histories = Histories.from_mapping(
        {
            user: (1 + rng.choice(NUM_ITEMS, size, p=likely / likely.sum())).tolist()
            for user, size in enumerate(rng.integers(3, 26, 50), 1)
        }
    )
    row = np.repeat(np.arange(50), np.diff(histories.offsets))
    times = rng.integers(0, 10 * 86_400, len(row))
    times = times[np.lexsort((times, row))]
    made = SASRecDataSet(histories=histories._replace(times=times))
    made.itemnum = NUM_ITEMS
    return made


def ranks_by(score, dataset, split="test"):
    """The rank of each user's item by `score(history, item)`, ties above it."""
    ranks = []
    for user, train in dataset.user_train.items():
        valid, test = dataset.user_valid[user], dataset.user_test[user]
        history, target = (train, valid[0]) if split == "valid" else (train + valid, test[0])
        others = set(range(1, NUM_ITEMS + 1)) - {*history, target}
        of_target = score(history, target)
        ranks.append(sum(score(history, item) >= of_target for item in others))
    return ranks


@pytest.mark.parametrize("split", ["valid", "test"])
def test_popularity_counts_training_events(dataset, split):
    counts = Counter(item for items in dataset.user_train.values() for item in items)

    found = evaluate_ranks(Popularity(dataset), dataset, split=split)

    assert found.ranks[:, 0].tolist() == ranks_by(lambda _, i: counts[i], dataset, split)


@pytest.mark.parametrize("window", [{"last_days": 2.5}, {"last_share": 0.3}, {"last_share": 1}])
def test_recent_popularity_counts_the_last_training_events_and_then_all(dataset, window):
    train = dataset.histories("train")
    newest_first = np.sort(train.times)[::-1]
    since = newest_first[0] - 2.5 * 86_400
    if "last_share" in window:
        since = newest_first[int(len(newest_first) * window["last_share"]) - 1]
    counts, recent = (
        Counter(train.items.tolist()),
        Counter(train.items[train.times >= since].tolist()),
    )

    found = evaluate_ranks(Popularity(dataset, **window), dataset)

    expected = ranks_by(lambda _, item: (recent[item], counts[item]), dataset)
    assert found.ranks[:, 0].tolist() == expected
    assert (recent == counts) == (window == {"last_share": 1})


@pytest.mark.parametrize("pairs_at_a_time", [1, 300, 1 << 24])
@pytest.mark.parametrize("options", [{}, {"last_events": 2}, {"num_neighbours": 3}])
def test_neighbours_are_near_by_the_cosine_of_who_has_both(
    dataset, monkeypatch, pairs_at_a_time, options
):
    monkeypatch.setattr(baselines, "_PAIRS_AT_A_TIME", pairs_at_a_time)
    users_of = {i: set() for i in range(1, NUM_ITEMS + 1)}
    for user, items in dataset.user_train.items():
        for item in items:
            users_of[item].add(user)

    def similarity(one, other):
        both, product = users_of[one] & users_of[other], len(users_of[one]) * len(users_of[other])
        return len(both) / np.sqrt(product) if both and one != other else 0.0

    most = options.get("num_neighbours", NUM_ITEMS)
    nearest = {
        one: sorted(users_of, key=lambda other, one=one: (-similarity(one, other), other))[:most]
        for one in users_of
    }

    def score(history, item):
        last = history[-options.get("last_events", 5) :]
        return sum(similarity(seen, item) for seen in last if item in nearest[seen])

    found = evaluate_ranks(ItemNeighbours(dataset, **options), dataset)

    assert found.ranks[:, 0].tolist() == ranks_by(score, dataset)
    assert found.metrics([10]).hr[10] > 0


class ByNumber:
    """Prefers items with high numbers, or gives the scores that it is told to give."""

    def __init__(self, scores=None):
        self.sizes, self.scores = [], scores

    def score_items(self, histories):
        self.sizes.append(len(histories.users))
        if self.scores is not None:
            return self.scores
        return torch.arange(NUM_ITEMS + 1.0).expand(len(histories.users), -1)


def test_anything_that_scores_all_items_is_measured(dataset):
    found = evaluate_full(ByNumber(), dataset, ks=[5])

    ranks = np.array(ranks_by(lambda _, item: item, dataset))
    assert found.hr[5] == np.mean(ranks < 5)
    assert found.mrr == pytest.approx(np.mean(1 / (ranks + 1)))


def test_users_are_scored_in_groups_that_fit_into_memory(dataset, monkeypatch):
    together, apart = ByNumber(), ByNumber()
    expected = evaluate_full(together, dataset)
    monkeypatch.setattr(given_scores, "SCORES_AT_A_TIME", 8 * (NUM_ITEMS + 1))

    assert evaluate_full(apart, dataset) == expected
    assert together.sizes == [50]
    assert apart.sizes == [8] * 6 + [2]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            torch.zeros(50, NUM_ITEMS),
            r"of ByNumber must be of the shape \(50, 71\), got \(50, 70\)",
        ),
        (torch.full((50, NUM_ITEMS + 1), torch.nan), "scores of ByNumber must be finite"),
    ],
)
def test_scores_that_rank_nothing_are_refused(dataset, scores, message):
    with pytest.raises(ValueError, match=message):
        evaluate_full(ByNumber(scores), dataset)


def test_items_that_a_baseline_has_not_counted_are_named(dataset):
    smaller = SASRecDataSet(histories={1: [1, 2, 3, 4]})

    with pytest.raises(ValueError, match=r"items must be in 1\.\.4 .* in the history of user"):
        evaluate_full(ItemNeighbours(smaller), dataset)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: Popularity(data, last_days=1, last_share=0.5), "and not both"),
        (
            lambda data: Popularity(data, last_days=0),
            "last_days must be finite and positive, got 0",
        ),
        (lambda data: Popularity(data, last_share=0), r"last_share must be in \(0, 1\], got 0"),
        (lambda data: ItemNeighbours(data, num_neighbours=0), "num_neighbours must be an integer"),
        (lambda data: ItemNeighbours(data, last_events=0), "last_events must be an integer of at"),
    ],
)
def test_bad_options_are_errors(dataset, make, message):
    with pytest.raises(ValueError, match=message):
        make(dataset)


def test_recent_popularity_needs_times():
    with pytest.raises(ValueError, match="recent popularity needs times of events"):
        Popularity(SASRecDataSet(histories={1: [1, 2, 3]}), last_days=7)
