"""Negatives that the events of a sequence share, or all events of a batch."""

import numpy as np
import pytest
import torch
from support.small_sampler import HISTORIES, NUM_ITEMS, assert_equal_batches, make

shared = pytest.mark.parametrize("per", ["sequence", "batch"])


def packed(count, **arguments):
    with make(**arguments) as sampler:
        return [sampler.next_packed() for _ in range(count)]


def chi_square(counts, weights):
    """How many standard deviations Pearson's statistic is above its mean, for these probabilities."""
    expected, freedom = counts.sum() * weights / weights.sum(), len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(("per", "rows"), [("event", None), ("sequence", 16), ("batch", 1)])
def test_a_batch_holds_as_many_sets_of_negatives_as_there_are_owners(source, per, rows):
    (batch,) = packed(1, num_negatives=7, negatives_per=per)

    assert batch.negatives_per == per
    assert batch.negatives.shape == (len(batch.items) if rows is None else rows, 7)
    assert batch.negatives_of_tokens().shape == (len(batch.items), 7)


@shared
def test_padded_batches_repeat_shared_negatives_for_each_event(source, per):
    arguments = {"num_negatives": 3, "negatives_per": per, "maxlen": 6}
    with make(**arguments) as sampler:
        _, seq, _, neg = sampler.next_batch()

    (batch,) = packed(1, **arguments)

    of_tokens = torch.from_numpy(neg[seq != 0])
    assert torch.equal(of_tokens, batch.negatives_of_tokens())
    assert not neg[seq == 0].any()


@pytest.mark.parametrize("exponent", [0.0, 0.75])
def test_those_of_a_sequence_are_never_in_the_history(source, exponent):
    histories = {**HISTORIES, 10: [29, 30]}  # else no item that user 9 has not seen weighs anything
    arguments = {"num_negatives": 50, "popularity_exponent": exponent}
    for batch in packed(10, histories=histories, negatives_per="sequence", **arguments):
        for user, negatives in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
            assert not set(negatives) & set(histories[user])
            assert set(negatives) <= set(range(1, NUM_ITEMS + 1))


def test_those_of_a_sequence_are_uniform_over_the_unseen_items(source):
    drawn = packed(10, histories={1: HISTORIES[1]}, num_negatives=50, negatives_per="sequence")
    counts = np.bincount(torch.cat([b.negatives for b in drawn]).flatten(), minlength=31)
    unseen = sorted(set(range(1, 31)) - set(HISTORIES[1]))

    assert counts.sum() == counts[unseen].sum() == 10 * 16 * 50
    assert chi_square(counts[unseen], np.ones(len(unseen))) < 4


def test_those_of_a_batch_are_uniform_over_all_items(source):
    drawn = packed(10, num_negatives=1000, negatives_per="batch")
    counts = np.bincount(torch.cat([b.negatives for b in drawn]).flatten(), minlength=31)

    assert counts[0] == 0
    assert chi_square(counts[1:], np.ones(30)) < 4


def test_those_of_a_batch_follow_popularity_to_the_power(source):
    # Item i has i * i events.
    events = np.repeat(np.arange(1, 9), np.arange(1, 9) ** 2)
    histories = {user: events[user - 1 :: 5].tolist() for user in range(1, 6)}
    drawn = packed(
        1, histories=histories, num_negatives=9000, negatives_per="batch", popularity_exponent=0.5
    )
    counts = np.bincount(drawn[0].negatives.flatten(), minlength=9)

    assert chi_square(counts[1:], np.arange(1, 9)) < 4


def test_users_who_have_seen_everything_are_trained_on_where_a_batch_shares_its_negatives(source):
    histories = {1: [1, 2, 3], 2: [3, 1]}

    (batch,) = packed(1, histories=histories, num_items=3, negatives_per="batch")

    assert set(batch.users.tolist()) == {1, 2}


@shared
def test_shared_negatives_leave_users_and_events_as_they_are(source, per):
    for plain, other in zip(packed(3), packed(3, negatives_per=per), strict=True):
        assert torch.equal(plain.users, other.users)
        assert torch.equal(plain.items, other.items)


@shared
def test_they_do_not_depend_on_workers_and_can_be_sought(source, per):
    arguments = {"num_negatives": 5, "negatives_per": per}
    with make(**arguments) as one, make(n_workers=3, **arguments) as other:
        expected = [one.next_batch() for _ in range(4)]
        other.seek(2)

        assert_equal_batches([other.next_batch() for _ in range(2)], expected[2:])


def test_a_batch_may_share_more_negatives_than_its_events_could_have_alone(source):
    (batch,) = packed(1, batch_size=1000, num_negatives=1_000_000, negatives_per="batch", maxlen=5)

    assert batch.negatives.shape == (1, 1_000_000)
