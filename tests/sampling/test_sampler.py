"""Training batches: their distribution, their layout, and that a seed gives them again."""

import os
import subprocess
import sys
import threading
from itertools import product

import numpy as np
import pytest
import torch
from support.small_sampler import HISTORIES, NUM_ITEMS, assert_equal_batches, make, timed
from support.sources import needs_native

from ssept_ext import WarpSampler, pack
from ssept_ext.data.histories import Histories
from ssept_ext.data.sse import SSE
from ssept_ext.sampling.draw import DrawSettings, NativeSource, draw_batch, sampling_table

DRAWABLE = [1, 3, 6, 9]


def batches(count, **arguments):
    with make(**arguments) as sampler:
        return [sampler.next_batch() for _ in range(count)]


def chi_square(counts, weights=1):
    """How many standard deviations Pearson's statistic is above its mean, for these probabilities."""
    counts, weights = np.asarray(counts, float), np.broadcast_to(weights, np.shape(counts))
    expected, freedom = counts.sum() * weights / weights.sum(), len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def padded_by_a_loop(history, maxlen):
    """What recommenders' sampler makes of one history."""
    seq, pos = [0] * maxlen, [0] * maxlen
    following, column = history[-1], maxlen - 1
    for item in reversed(history[:-1]):
        seq[column], pos[column] = item, following
        following, column = item, column - 1
        if column == -1:
            break
    return seq, pos


@pytest.mark.parametrize("maxlen", [1, 3, 5, 40])
def test_sequences_are_laid_out_as_by_a_plain_loop(source, maxlen):
    users, seq, pos, neg = batches(1, maxlen=maxlen, batch_size=64)[0]

    assert set(users.tolist()) == set(DRAWABLE)
    for user, inputs, positives in zip(users.tolist(), seq.tolist(), pos.tolist(), strict=True):
        assert (inputs, positives) == padded_by_a_loop(HISTORIES[user], maxlen)
    np.testing.assert_array_equal(neg == 0, seq == 0)


def test_batches_are_int64_arrays(source):
    users, *padded = batches(1)[0]

    assert (users.shape, users.dtype) == ((16,), np.int64)
    assert [(a.shape, a.dtype) for a in padded] == [((16, 5), np.int64)] * 3


@pytest.mark.parametrize(
    "arguments",
    [{}, {"popularity_exponent": 0.75, "num_negatives": 3, "window_sampling_prob": 0.5}],
)
def test_negatives_are_never_in_the_history(source, arguments):
    histories = {**HISTORIES, 10: [29, 30]}  # else no item that user 9 has not seen weighs anything
    for users, seq, _, neg in batches(30, histories=histories, maxlen=40, **arguments):
        for user, inputs, negatives in zip(users.tolist(), seq, neg, strict=True):
            drawn = set(negatives[inputs != 0].ravel().tolist())
            assert not drawn & set(histories[user])
            assert drawn <= set(range(1, NUM_ITEMS + 1))


def test_users_are_uniform_among_those_with_two_events(source):
    users = np.concatenate([batch[0] for batch in batches(20, batch_size=1000)])

    counts = np.bincount(users, minlength=10)

    assert counts.sum() == counts[DRAWABLE].sum()
    assert chi_square(counts[DRAWABLE]) < 4


@pytest.mark.parametrize("user", [1, 9])
def test_negatives_are_uniform_over_the_unseen_items(source, user):
    drawn = batches(20, histories={user: HISTORIES[user]}, batch_size=500)
    counts = np.bincount(np.concatenate([neg[neg != 0] for *_, neg in drawn]), minlength=31)
    unseen = sorted(set(range(1, 31)) - set(HISTORIES[user]))

    assert counts.sum() == counts[unseen].sum()
    assert chi_square(counts[unseen]) < 4


def test_negatives_follow_popularity_to_the_power(source):
    # Item i has i * i events among users 2 to 6; user 1 has seen items 9 and 4.
    events = np.repeat(np.arange(1, 9), np.arange(1, 9) ** 2)
    histories = {1: [9, 4], **{user: events[user - 2 :: 5].tolist() for user in range(2, 7)}}
    drawn = batches(5, histories=histories, num_items=9, batch_size=4000, popularity_exponent=0.5)
    negatives = np.concatenate([neg[users == 1, -1] for users, *_, neg in drawn])
    counts = np.bincount(negatives, minlength=10)
    unseen = np.array([1, 2, 3, 5, 6, 7, 8])

    assert counts[unseen].sum() == counts.sum() > 2000
    assert chi_square(counts[unseen], unseen) < 4


def test_windows_start_anywhere_in_longer_histories(source):
    history = list(range(1, 13))
    drawn = batches(1, histories={1: history}, maxlen=4, batch_size=8000, window_sampling_prob=1.0)
    _, seq, pos, _ = drawn[0]

    np.testing.assert_array_equal(seq[:, 1:], pos[:, :-1])
    assert chi_square(np.bincount(seq[:, 0])[1:]) < 4  # 8 windows, from events 1 to 8
    assert set(seq[:, 0].tolist()) == set(range(1, 9))


def test_windows_are_as_frequent_as_asked(source):
    _, seq, *_ = batches(
        1, histories={1: list(range(1, 13))}, maxlen=4, batch_size=8000, window_sampling_prob=0.4
    )[0]

    last_events = (seq[:, 0] == 8).mean()

    assert last_events == pytest.approx(0.6 + 0.4 / 8, abs=0.03)


@pytest.mark.parametrize("workers", [2, 4])
def test_batches_do_not_depend_on_the_number_of_workers(source, workers):
    assert_equal_batches(batches(25), batches(25, n_workers=workers))


def test_the_seed_gives_the_batches_again_and_another_seed_others(source):
    assert_equal_batches(batches(3), batches(3))
    assert not np.array_equal(batches(1)[0][3], batches(1, seed=8)[0][3])
    assert not np.array_equal(batches(2)[0][3], batches(2)[1][3])


def test_a_seed_is_drawn_where_none_is_given_and_gives_the_batches_again(source):
    with make(seed=None) as one, make(seed=None) as other:
        batch = one.next_batch()

    assert one.seed != other.seed
    assert_equal_batches([batch], batches(1, seed=one.seed))


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_packed_batches_are_the_padded_ones_without_padding(source, num_negatives):
    arguments = {"num_negatives": num_negatives, "maxlen": 6}
    with make(**arguments) as sampler:
        packed = [sampler.next_packed() for _ in range(3)]

    for got, padded in zip(packed, batches(3, **arguments), strict=True):
        users, seq, pos, neg = map(torch.from_numpy, padded)
        expected = pack(users, seq, pos, neg if num_negatives == 1 else neg[..., 0])
        for name in ("users", "items", "positions", "cu_seqlens", "positives"):
            left, right = getattr(got, name), getattr(expected, name)
            assert left.dtype == right.dtype
            assert torch.equal(left, right), name
        wide = neg.unsqueeze(2) if num_negatives == 1 else neg
        assert torch.equal(got.negatives, wide[seq != 0])
        assert got.max_seqlen == expected.max_seqlen


def test_padded_and_packed_batches_are_of_one_stream(source):
    with make() as sampler:
        sampler.next_packed()
        second = sampler.next_batch()

    assert_equal_batches([second], batches(2)[1:])


@pytest.mark.parametrize("index", [0, 3, 7, 2**40])
def test_seek_goes_on_with_any_batch(source, index):
    with make(n_workers=2) as sampler, make(n_workers=2) as other:
        expected = [sampler.next_batch() for _ in range(9)][index:] if index < 9 else []
        other.next_batch()
        other.seek(index)
        got = [other.next_batch() for _ in range(2)]

        assert other.tell() == index + 2
        assert_equal_batches(got[: len(expected)], expected[:2])
        other.seek(index)
        assert_equal_batches([other.next_batch()], got[:1])


def test_seek_refuses_negative_numbers_and_closed_samplers(source):
    sampler = make()
    with pytest.raises(ValueError, match="index must be an integer of at least 0, got -1"):
        sampler.seek(-1)
    sampler.close()
    with pytest.raises(RuntimeError, match="closed"):
        sampler.seek(1)


def test_negative_log_probs_are_the_shares_of_the_draws():
    histories = {1: [9, 9], 2: [1], 3: [2, 2, *[3] * 8], 4: [2, 2, *[3] * 8]}
    with make(histories, 10, popularity_exponent=0.5) as sampler:
        shares = np.exp(sampler.negative_log_probs)

    weights = np.array([1, 2, 4, 2**0.5])  # items 1, 2, 3 and 9
    np.testing.assert_allclose(shares[[1, 2, 3, 9]], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(shares[[0, 4, 10]], shares[1])  # never drawn: the smallest share


def test_uniform_negatives_have_no_log_probs():
    with make() as sampler:
        assert sampler.negative_log_probs is None


@needs_native
@pytest.mark.parametrize(
    ("exponent", "window", "negatives", "max_len", "sse", "per"),
    [
        *product((0.0, 0.75), (0.0, 0.5), (1, 4), (3,), (SSE(),), ("event",)),
        *product((0.0, 0.75), (0.0, 0.5), (1, 40), (3,), (SSE(),), ("sequence", "batch")),
        (0.0, 1.0, 1, 1, SSE(0.5, 0.0, 0.7, user_num=60, item_num=80), "event"),
        (1.0, 0.0, 2, 50, SSE(0.9, 0.4, joint=True, user_num=60, item_num=80), "event"),
        (1.0, 0.0, 2, 50, SSE(0.9, 0.4, joint=True, user_num=60, item_num=80), "sequence"),
    ],
)
@pytest.mark.parametrize("with_times", [False, True])
def test_native_and_numpy_draw_the_same(exponent, window, negatives, max_len, sse, per, with_times):
    rng = np.random.default_rng(0)
    histories = {u: rng.integers(1, 81, rng.integers(1, 40)).tolist() for u in range(1, 61)}
    table = sampling_table(timed(histories), 60, 80, exponent, with_times=with_times)
    sizes = (33, max_len, negatives)
    settings = DrawSettings((12345, 2**64 - 1), *sizes, window, sse, negatives_per=per)
    native = NativeSource(table, settings, 0, 2)

    for index in range(5):
        drawn, expected = native.next(), draw_batch(table, settings, index)
        assert (drawn.times is not None) is with_times
        for name, left, right in zip(expected._fields, drawn, expected, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=name)
    native.close()


def test_batches_stay_as_they_were_when_later_ones_are_drawn(source):
    with make(n_workers=2) as sampler:
        kept = sampler.next_packed()
        items, negatives = kept.items.clone(), kept.negatives.clone()
        for _ in range(30):
            sampler.next_packed()

    assert torch.equal(kept.items, items)
    assert torch.equal(kept.negatives, negatives)


def test_a_closed_sampler_refuses_to_draw(source):
    sampler = make(n_workers=2)
    sampler.next_batch()

    sampler.close()
    sampler.close()

    for draw in (sampler.next_batch, sampler.next_packed):
        with pytest.raises(RuntimeError, match="closed"):
            draw()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads by /proc")
def test_leaving_the_context_ends_the_threads(source):
    def num_threads():
        return len(os.listdir("/proc/self/task")), threading.active_count()

    before = num_threads()
    with make(n_workers=4) as sampler:
        sampler.next_batch()

    assert num_threads() == before


def test_a_program_that_never_closes_it_ends(source, tmp_path):
    program = (
        "from ssept_ext import WarpSampler, _extension\n"
        + ("_extension.native = None\n" if source == "numpy" else "")
        + "s = WarpSampler({1: [1, 2, 3]}, 1, 9, n_workers=3)\ns.next_batch()\nprint('end')\n"
    )

    done = subprocess.run(
        # Not in the checkout, whose package has no extension.
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"maxlen": -1}, "maxlen must be an integer of at least 1, got -1"),
        ({"n_workers": 0}, "n_workers must be an integer of at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"num_negatives": 0}, "num_negatives must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"popularity_exponent": 2.1}, r"popularity_exponent must be in \[0, 2\], got 2.1"),
        ({"window_sampling_prob": float("nan")}, r"window_sampling_prob must be in \[0, 1\]"),
        ({"num_items": 29}, "User holds item id 30, but itemnum is 29"),
        ({"histories": {1: [2, 0]}}, r"item id .* got 0 \(user 1\)"),
        ({"histories": {1: [2], 2: [3]}}, "none of the 2 users in User has more than one event"),
        (
            {"histories": {1: [2], 4: [1, 2, 3]}, "num_items": 3},
            "all 1 users with more than one event have seen all the items that negatives are",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


SATED = {1: [2, 3], 4: [1, 2, 3, 1], 5: [1]}


@pytest.mark.parametrize("popularity_exponent", [0.0, 1.0])
def test_users_who_have_seen_everything_are_left_out_with_their_count(popularity_exponent):
    with pytest.warns(
        UserWarning, match="1 of 2 users are left out of training, because they have"
    ):
        sampler = make(SATED, num_items=3, popularity_exponent=popularity_exponent)

    with sampler:
        assert set(sampler.next_packed().users.tolist()) == {1}


def test_without_negatives_users_who_have_seen_everything_are_drawn():
    with make(SATED, num_items=3, needs_negatives=False, batch_size=50) as sampler:
        batch = sampler.next_packed()

    assert set(batch.users.tolist()) == {1, 4}
    assert batch.negatives.min() >= 1
    assert batch.negatives.max() <= 3


def test_sequences_do_not_depend_on_whether_negatives_are_needed():
    with make() as needing, make(needs_negatives=False) as free:
        for _ in range(3):
            for array, other in zip(needing.next_batch()[:3], free.next_batch()[:3], strict=True):
                np.testing.assert_array_equal(array, other)


def test_histories_that_are_no_mapping_are_named():
    with pytest.raises(TypeError, match="histories must map each user to a sequence .*, got list"):
        WarpSampler([[1, 2]], usernum=4, itemnum=9)


def test_a_user_beyond_usernum_is_named():
    with pytest.raises(ValueError, match="User holds user id 5, but usernum is 4"):
        WarpSampler({5: [1, 2]}, usernum=4, itemnum=9)


def test_histories_are_hashed_once_however_often_a_training_is_saved(monkeypatch):
    hashed, digest = [], Histories.digest
    monkeypatch.setattr(Histories, "digest", lambda self, **how: hashed.append(1) or digest(self))

    with make() as sampler:
        assert sampler.digest() == sampler.digest()

    assert len(hashed) == 1
