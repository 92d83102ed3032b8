"""Batches with the times of their events, for models that read them."""

import numpy as np
import pytest
import torch
from support.small_sampler import HISTORIES, NUM_ITEMS, make, make_timed, timed

from ssept_ext import WarpSampler
from ssept_ext.data.histories import Histories
from ssept_ext.data.sse import SSE

ALL_REPLACED = SSE(1.0, 1.0, target_prob=1.0, user_num=max(HISTORIES), item_num=NUM_ITEMS)


def assert_times_are_those_of_the_events(batch, histories):
    """Where time 100 * u + i is that of event number i of user u."""
    assert batch.times.dtype == batch.target_times.dtype == torch.int64
    assert torch.equal(batch.target_times, batch.times + 1)
    assert torch.equal(batch.times // 100, batch.users.repeat_interleave(batch.cu_seqlens.diff()))
    users, places = (batch.times // 100).tolist(), (batch.times % 100).tolist()
    for ids, later in ((batch.items, 0), (batch.positives, 1)):
        expected = [histories[user][i + later] for user, i in zip(users, places, strict=True)]
        assert ids.tolist() == expected


@pytest.mark.parametrize("window", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("maxlen", [1, 3, 40])
def test_each_event_has_its_time_and_that_of_the_event_after_it(source, maxlen, window):
    with make_timed(maxlen=maxlen, window_sampling_prob=window, n_workers=2) as sampler:
        for _ in range(8):
            assert_times_are_those_of_the_events(sampler.next_packed(), HISTORIES)


def test_times_change_nothing_else(source):
    with make() as plain, make_timed() as sampler:
        for _ in range(3):
            expected, got = plain.next_packed(), sampler.next_packed()
            for name in ("users", "items", "positions", "cu_seqlens", "positives", "negatives"):
                assert torch.equal(getattr(got, name), getattr(expected, name)), name
            assert expected.times is expected.target_times is None
        assert sampler.settings == plain.settings


def test_histories_with_times_give_batches_without_unless_asked(source):
    with make_timed(with_times=False) as sampler:
        batch = sampler.next_packed()

    assert batch.times is batch.target_times is None


def test_sse_replaces_ids_but_not_times(source):
    with make_timed() as plain, make_timed() as sampler, sampler.replacing(ALL_REPLACED):
        expected, got = plain.next_packed(), sampler.next_packed()

    assert not torch.equal(got.items, expected.items)
    assert torch.equal(got.times, expected.times)
    assert torch.equal(got.target_times, expected.target_times)


@pytest.mark.filterwarnings("ignore:1 of 3 users are left out")
def test_times_stay_with_their_events_where_users_are_left_out(source):
    # User 1 is never drawn, and 2 has seen all items.
    histories = {1: [2], 2: [3, 1, 2, 3], 4: [2, 3], 5: [3, 3, 1]}

    with make_timed(histories, num_items=3) as sampler:
        batch = sampler.next_packed()

    assert set(batch.users.tolist()) == {4, 5}
    assert_times_are_those_of_the_events(batch, histories)


def test_times_need_no_negatives(source):
    with make_timed(needs_negatives=False) as sampler:
        assert_times_are_those_of_the_events(sampler.next_packed(), HISTORIES)


@pytest.mark.parametrize("histories", [HISTORIES, Histories.from_mapping(HISTORIES)])
def test_histories_without_times_are_refused(histories):
    with pytest.raises(ValueError, match="times of events, which User does not have"):
        WarpSampler(histories, max(HISTORIES), NUM_ITEMS, with_times=True)


def test_a_digest_is_of_the_times_that_batches_have():
    later = timed()._replace(times=timed().times + 1)
    arguments = {"usernum": 9, "itemnum": NUM_ITEMS}
    with (
        make() as plain,
        make_timed(with_times=False) as ignoring,
        make_timed() as one,
        make_timed() as same,
        WarpSampler(later, with_times=True, **arguments) as other,
    ):
        assert plain.digest() == ignoring.digest()
        assert one.digest() == same.digest()
        assert len({plain.digest(), one.digest(), other.digest()}) == 3


def test_batches_keep_their_times_when_later_ones_are_drawn(source):
    with make_timed(n_workers=2) as sampler:
        kept = sampler.next_packed()
        times = kept.times.numpy().copy()
        for _ in range(30):
            sampler.next_packed()

    np.testing.assert_array_equal(kept.times, times)
