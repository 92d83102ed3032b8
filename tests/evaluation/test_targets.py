"""All events of a part as targets: after the events before the part, or each after all events before it."""

import numpy as np
import pytest
import torch
from support.factories import tiny_model

from ssept_ext import SASREC, SASRecDataSet
from ssept_ext.data.histories import Histories
from ssept_ext.evaluation import (
    compare_ranks,
    evaluate_full,
    evaluate_ranks,
    metric_intervals,
    targets,
)
from ssept_ext.network.recommender import SequentialRecommender

NUM_ITEMS = 6


class AfterTheLast:
    """Ranks the items after the last one of the input first: after 2, they are 3, 4, 5, 6, 1, 2."""

    def __init__(self):
        self.asked = []

    def score_items(self, histories):
        self.asked += [histories.items[end - 1] for end in histories.offsets[1:]]
        last = torch.from_numpy(histories.items[histories.offsets[1:] - 1])
        return -((torch.arange(NUM_ITEMS + 1) - last[:, None] - 1) % NUM_ITEMS).double()


def by_time():
    """Two users with events on both sides of the moments 10 and 20, one with none before, and one with none after."""
    histories = Histories.from_mapping({1: [1, 2, 4, 5, 3], 2: [3, 4, 6], 3: [1, 5], 4: [2, 6]})
    times = np.array([1, 2, 11, 21, 22, 3, 21, 25, 23, 24, 1, 2])
    data = SASRecDataSet(histories=histories._replace(times=times))
    data.split_by_time(10, 20)
    return data


def ranks_of(which, split="test", **options):
    found = evaluate_ranks(
        AfterTheLast(), by_time(), 3, split=split, targets=which, exclude_seen=False, **options
    )
    return list(
        zip(found.users.tolist(), found.items.tolist(), found.ranks[:, 0].tolist(), strict=True)
    )


def test_next_finds_the_first_event_of_each_user():
    # User 1 has 1, 2, 4 before, and then 5; user 2 has 3, and then 4.
    assert ranks_of("next") == [(1, 5, 0), (2, 4, 0)]


def test_all_finds_every_event_from_the_history_before_the_part():
    # After 4: 5, 6, 1, 2, 3, 4. After 3: 4, 5, 6, 1, 2, 3.
    assert ranks_of("all") == [(1, 5, 0), (1, 3, 4), (2, 4, 0), (2, 6, 2)]


def test_successive_finds_every_event_from_all_before_it():
    # 3 is after 5 now, and 6 after 4.
    assert ranks_of("successive") == [(1, 5, 0), (1, 3, 3), (2, 4, 0), (2, 6, 1)]


def test_the_validation_part_has_targets_of_its_own():
    assert ranks_of("successive", "valid") == ranks_of("all", "valid") == [(1, 4, 1)]


def test_earlier_events_of_the_part_are_left_out_of_the_ranking_only_if_they_are_the_input():
    data, options = by_time(), {"exclude_seen": True, "k": 6}
    # User 1, after 1, 2, 4: of 5, 6, 3 the third; and after 1, 2, 4, 5: of 6, 3 the second.
    found = {
        which: evaluate_ranks(AfterTheLast(), data, targets=which, **options).ranks[1, 0]
        for which in ("all", "successive")
    }

    assert found == {"all": 2, "successive": 1}


def test_metrics_are_averages_over_events():
    metrics = evaluate_full(
        AfterTheLast(), by_time(), [1, 2], targets="successive", exclude_seen=False
    )

    assert (metrics.num_users, metrics.num_events) == (2, 4)
    assert metrics.hr == {1: 0.5, 2: 0.75}
    assert metrics.mrr == pytest.approx((1 + 1 / 4 + 1 + 1 / 2) / 4)


def test_of_one_held_out_event_of_each_user_all_targets_are_the_same():
    data = SASRecDataSet(histories={u: [1 + (u + t) % 6 for t in range(5)] for u in range(1, 9)})
    model = tiny_model(SASREC, item_num=NUM_ITEMS)

    first, *others = (
        evaluate_full(model, data, [1, 3], targets=which) for which in ("next", "all", "successive")
    )

    assert others == [first, first]


@pytest.mark.parametrize("most", [1, 4, 7])
def test_inputs_are_laid_out_some_at_a_time(most, monkeypatch):
    whole = {which: ranks_of(which) for which in ("next", "all", "successive")}
    monkeypatch.setattr(targets, "EVENTS_AT_A_TIME", most)

    assert {which: ranks_of(which) for which in whole} == whole
    scorer = AfterTheLast()
    evaluate_ranks(scorer, by_time(), 3, targets="successive")
    assert scorer.asked == [4, 5, 3, 4]


def test_a_model_with_times_is_asked_at_the_time_of_each_event(monkeypatch):
    asked = []
    honest = SequentialRecommender.encode_last

    def encode_last(model, batch, vectors=None):
        ends = batch.cu_seqlens[1:].long() - 1
        asked.extend(
            zip(batch.items[ends].tolist(), batch.target_times[ends].tolist(), strict=True)
        )
        return honest(model, batch, vectors)

    monkeypatch.setattr(SequentialRecommender, "encode_last", encode_last)
    model = tiny_model(SASREC, item_num=NUM_ITEMS, time_bias=True)

    evaluate_full(model, by_time(), [1], targets="successive")

    assert asked == [(4, 21), (5, 22), (3, 21), (4, 25)]


def test_intervals_resample_users_with_all_their_events():
    """With one hit of a user's nine events and nine of another's one, resamples of events would be far too sure."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 300)
    hit = np.repeat(rng.random(300) < 0.4, lengths)  # all events of a user are hits, or none is
    users = np.repeat(np.arange(1, 301), lengths)
    found = evaluate_ranks(AfterTheLast(), by_time(), 3, targets="all")
    many = type(found)(
        **{
            **vars(found),
            "users": users,
            "items": np.ones_like(users),
            "ranks": np.where(hit, 0, 99)[:, None],
            "best": np.zeros((len(users), 4), np.int64),
        }
    )

    interval = metric_intervals(many, [1])["HR@1"]

    sums, sizes = np.bincount(users, hit), np.bincount(users)
    mean = sums.sum() / sizes.sum()
    deviation = (
        np.sqrt(((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    )  # of a ratio, by the delta method
    assert interval.mean == pytest.approx(mean)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_rankings_are_compared_event_by_event():
    data = by_time()
    one, other = (
        evaluate_ranks(scorer, data, 3, targets="successive", exclude_seen=False)
        for scorer in (AfterTheLast(), AfterTheLast())
    )

    assert compare_ranks(one, other, [1])["MRR"].difference == (0, 0, 0)
    with pytest.raises(
        ValueError, match="of the same targets to be compared, got successive and all"
    ):
        compare_ranks(one, evaluate_ranks(AfterTheLast(), data, 3, targets="all"))


def test_lists_need_one_target_of_each_user():
    found = evaluate_ranks(AfterTheLast(), by_time(), 3, targets="all")

    with pytest.raises(ValueError, match='which targets="all" does not give'):
        found.lists()
    assert found.to_frame()["user"].tolist() == [1, 1, 2, 2]


def test_unknown_targets_are_named():
    with pytest.raises(ValueError, match="targets must be one of .*, got 'last'"):
        evaluate_full(AfterTheLast(), by_time(), targets="last")
