"""The ways to a packed batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.factories import random_batch

from ssept_ext.data.histories import Histories
from ssept_ext.data.packed import (
    align,
    last_events,
    number_rows,
    pack,
    pack_statically,
    round_up_tokens,
)

USERS = torch.tensor([7, 8, 9])
SEQ = torch.tensor([[0, 0, 3, 5], [2, 9, 4, 1], [0, 0, 0, 0]])


def assert_equal(batch, expected):
    for name in ("users", "items", "positions", "cu_seqlens", "positives", "negatives"):
        left, right = getattr(batch, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        assert left is None or (left.dtype == right.dtype and torch.equal(left, right)), name
    assert batch.max_seqlen == expected.max_seqlen


def test_padding_is_dropped_and_columns_are_kept():
    batch = pack(USERS, SEQ, SEQ + 10, (SEQ + 20)[..., None].expand(-1, -1, 2))

    assert batch.items.tolist() == [3, 5, 2, 9, 4, 1]
    assert batch.positions.tolist() == [2, 3, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 2, 6, 6]
    assert batch.positives.tolist() == [13, 15, 12, 19, 14, 11]
    assert batch.negatives[:2].tolist() == [[23, 23], [25, 25]]
    assert batch.max_seqlen == 4


def test_static_packing_is_packing_with_the_padding_behind():
    batch = pack_statically(USERS, SEQ)

    expected = pack(USERS, SEQ)
    num_real = len(expected.items)
    assert batch.items[:num_real].tolist() == expected.items.tolist()
    assert batch.positions[:num_real].tolist() == expected.positions.tolist()
    assert torch.equal(batch.cu_seqlens, expected.cu_seqlens)
    assert batch.items.shape == (12,)
    assert not batch.items[num_real:].any()


def test_the_last_events_are_those_of_the_padded_histories():
    histories = Histories.from_mapping({5: [1], 7: [3, 5], 8: [6, 2, 9, 4, 1], 9: [2]})

    assert_equal(last_events(histories, slice(1, 3), 4), pack(USERS[:2], SEQ[:2]))


def test_a_token_has_its_time_and_that_of_the_event_after_it():
    histories = Histories.from_mapping({7: [3, 5], 8: [], 9: [6, 2, 9]})
    histories = histories._replace(times=np.array([10, 20, 1, 4, 9]))

    batch = last_events(histories, slice(0, 3), 2, at=np.array([25, 0, 100]))

    assert batch.times.tolist() == [10, 20, 4, 9]
    assert batch.target_times.tolist() == [20, 25, 9, 100]


def test_aligning_and_rounding_up_treat_times_as_items():
    times = torch.arange(130)
    batch = replace(random_batch(100, 30, seq_max_len=100), times=times, target_times=times + 1)

    aligned, rounded = align(batch, 100, 90), round_up_tokens(batch)

    assert aligned.times.tolist() == [*range(10, 130)]
    assert aligned.target_times.tolist() == [*range(11, 131)]
    assert rounded.times.tolist() == [*range(130), 0, 0]
    assert rounded.target_times.tolist() == [*range(1, 131), 0, 0]


@pytest.mark.parametrize("seq_max_len", [1, 2, 3, 4, 5, 9])
def test_a_batch_is_aligned_at_the_newest_event(seq_max_len):
    negatives = torch.from_numpy(np.arange(24).reshape(3, 4, 2))

    def fitted(columns):
        padding = torch.zeros(3, 9, *columns.shape[2:], dtype=torch.int64)
        return torch.cat([padding, columns], 1)[:, -seq_max_len:]

    batch = align(pack(USERS, SEQ, SEQ + 10, negatives), 4, seq_max_len)

    assert_equal(batch, pack(USERS, *map(fitted, (SEQ, SEQ + 10, negatives))))


def test_a_batch_without_targets_is_aligned_too():
    assert_equal(align(pack(USERS, SEQ), 4, 2), pack(USERS, SEQ[:, -2:]))


@pytest.mark.parametrize("numbered", [False, True])
def test_rounding_up_adds_spare_capacity_to_all_that_tokens_have(numbered):
    batch = random_batch(150, 81, seq_max_len=150, num_negatives=2)
    batch = number_rows(batch) if numbered else batch

    rounded = round_up_tokens(batch)

    for part, whole in [(batch, rounded)] + [(batch.numbers, rounded.numbers)] * numbered:
        for name in ("items", "positions", "positives", "negatives"):
            if (given := getattr(part, name, None)) is not None:
                assert len(getattr(whole, name)) == 232
                assert torch.equal(getattr(whole, name)[:231], given)
                assert not getattr(whole, name)[231:].any()
    assert torch.equal(rounded.cu_seqlens, batch.cu_seqlens)
    assert torch.equal(rounded.users, batch.users)


@pytest.mark.parametrize(("per", "rows"), [("sequence", 2), ("batch", 1)])
def test_aligning_and_rounding_up_leave_shared_negatives_as_they_are(per, rows):
    batch = random_batch(150, 81, seq_max_len=150)
    batch = number_rows(
        replace(batch, negatives=torch.arange(1, 1 + rows * 3).view(rows, 3), negatives_per=per)
    )

    for changed in (round_up_tokens(batch), align(batch, 150, 90)):
        assert changed.negatives_per == per
        assert torch.equal(changed.negatives, batch.negatives)
    assert torch.equal(round_up_tokens(batch).numbers.negatives, batch.numbers.negatives)


def test_tokens_find_the_negatives_of_their_sequence():
    batch = replace(
        random_batch(2, 0, 1), negatives=torch.tensor([[4], [5], [6]]), negatives_per="sequence"
    )

    assert batch.negatives_of_tokens().tolist() == [[4], [4], [6]]
    assert round_up_tokens(replace(batch, items=torch.ones(5).long())).negatives_of_tokens()[
        3:
    ].tolist() == [[0], [0]]


def test_rounding_up_leaves_few_numbers_of_tokens_and_adds_little():
    counts = range(1, 5000)

    rounded = [len(round_up_tokens(random_batch(n, seq_max_len=n)).items) for n in counts]

    assert max(new / n for n, new in zip(counts, rounded, strict=True)) <= 1 + 1 / 32
    assert len({new for new in rounded if 1024 < new <= 2048}) == 32
