"""How many tokens the buffers of a CUDA graph have room for."""

from pathlib import Path

import numpy as np
import pytest
from support.graphed_steps import batch

from ssept_ext.training.batch_shape import (
    BatchShape,
    tokens_for,
)

ML_1M = Path(__file__).parents[3] / "shared" / "data" / "ml-1m.txt.gz"


def test_a_shape_leaves_room_for_longer_batches_but_not_for_more_than_there_can_be():
    shape = BatchShape.like(batch(5, 1, 17, 9), seq_max_len=20)
    assert 32 + 2 * 12 <= shape.capacity <= 128
    assert (shape.batch_size, shape.num_negatives) == (4, 2)
    assert shape.capacity % 64 == 0
    assert BatchShape.like(batch(20, 0, 20, 0), seq_max_len=20).capacity == 128


def test_a_shape_has_room_by_the_lengths_that_sequences_are_drawn_from():
    short, long = np.full(9, 2), np.array([2, 300])
    assert BatchShape.like(batch(2, 2, 2, 2), 20, short).capacity == 64
    assert BatchShape.like(batch(2, 2, 2, 2), 20, long).capacity == 128  # 4 of 20 at most
    assert BatchShape.like(batch(20, 20, 20, 20), 20, short).capacity == 128  # no batch is too long


def exceeded(lengths, batch_size, capacity, num_batches=100_000):
    """The share of batches of this size that have more tokens than `capacity`, and the mean of their tokens."""
    rng = np.random.default_rng(0)
    parts = (rng.choice(lengths, (num_batches // 10, batch_size)).sum(1) for _ in range(10))
    tokens = np.concatenate(list(parts))
    return (tokens > capacity).mean(), tokens.mean()


SKEWED = (np.random.default_rng(0).pareto(1.2, 5000) * 5 + 1).astype(int).clip(max=200)


@pytest.mark.parametrize("misfit_rate", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("batch_size", [1, 8, 128])
def test_skewed_lengths_exceed_a_capacity_as_rarely_as_asked_for_and_one_less_more_often(
    batch_size, misfit_rate
):
    capacity = tokens_for(SKEWED, batch_size, misfit_rate)

    rate, _ = exceeded(SKEWED, batch_size, capacity)
    spread = 4 * (misfit_rate / 100_000) ** 0.5
    assert rate <= misfit_rate + spread
    if capacity < 200 * batch_size:
        room_for_fewer, _ = exceeded(SKEWED, batch_size, capacity - max(1, capacity // 20))
        assert room_for_fewer > misfit_rate


def test_the_capacity_of_two_coins_is_exact():
    heads = np.array([0, 1])  # the sum of 10 exceeds 7 with 56 / 1024, 8 with 11 / 1024
    assert tokens_for(heads, 10, 56 / 1024) == 7
    assert tokens_for(heads, 10, 55 / 1024) == 8
    assert tokens_for(heads, 10, 1e-8) == 10
    assert tokens_for(np.array([7, 7]), 3, 1e-8) == 21


@pytest.mark.skipif(not ML_1M.is_file(), reason="needs the data")
def test_graphs_for_ml_1m_are_exceeded_in_one_step_of_ten_thousand_and_a_quarter_spare():
    users = np.loadtxt(ML_1M, np.int64, usecols=0)
    lengths = (np.bincount(users)[1:] - 3).clip(
        1, 200
    )  # two are held out, the last is a target only

    capacity = BatchShape.like(batch(*lengths[:128].tolist()), 200, lengths).capacity

    rate, mean = exceeded(lengths, 128, capacity)
    assert rate <= 3e-4  # of 100,000: 1e-4, and four deviations
    assert capacity < 1.25 * mean
