"""SSE by the sampler's threads: what is replaced, and when."""

import numpy as np
import pytest
from support.small_sampler import HISTORIES, NUM_ITEMS, assert_equal_batches, make

from ssept_ext.data.sse import SSE

ALL_REPLACED = SSE(1.0, 1.0, joint=True, user_num=max(HISTORIES), item_num=NUM_ITEMS)


def ids_of(sampler, count=3):
    packed = [sampler.next_packed() for _ in range(count)]
    assert len({batch.ids_replaced for batch in packed}) == 1
    return [[x.numpy() for x in (b.users, b.items, b.positives, b.negatives)] for b in packed]


@pytest.mark.parametrize("workers", [1, 3])
def test_ids_are_replaced_by_seed_and_number_of_the_batch(source, workers):
    with make() as sampler, sampler.replacing(ALL_REPLACED):
        expected = ids_of(sampler, 5)

    with make(n_workers=workers) as other, other.replacing(ALL_REPLACED):
        other.seek(3)
        assert_equal_batches(ids_of(other, 2), expected[3:])


def test_batches_before_and_after_replacing_are_as_ever(source):
    with make() as plain:
        expected = ids_of(plain, 9)

    with make() as sampler:
        before = ids_of(sampler)
        with sampler.replacing(ALL_REPLACED):
            replaced = ids_of(sampler)
        after = ids_of(sampler)

    assert_equal_batches(before + after, expected[:3] + expected[6:])
    for (users, items, positives, negatives), plain_ids in zip(
        replaced, expected[3:6], strict=True
    ):
        np.testing.assert_array_equal(negatives, plain_ids[3])
        for got, plain in zip((users, items, positives), plain_ids, strict=False):
            assert got.shape == plain.shape
            assert (got != plain).mean() > 0.7


def test_a_sampler_may_be_closed_while_it_replaces_ids(source):
    with make() as sampler, sampler.replacing(ALL_REPLACED):
        sampler.close()
