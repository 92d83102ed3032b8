"""Drawing items that users have not seen: exact by weight, and the same by both implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sources import needs_native

from ssept_ext import _extension
from ssept_ext.data.histories import MAX_ID, Histories
from ssept_ext.sampling.negatives import negative_table
from ssept_ext.utils.philox import philox_key

NUM_ITEMS = 40
histories = st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=30), min_size=1, max_size=8).map(
    lambda rows: dict(enumerate(rows, 1))
)
item_weights = st.lists(st.integers(0, 9), min_size=NUM_ITEMS, max_size=NUM_ITEMS).map(
    lambda weights: np.array([0, *weights], np.int32)
)


def weights_or_none(weights):
    return np.r_[0, np.ones(NUM_ITEMS, int)] if weights is None else weights


@given(histories, st.none() | item_weights)
def test_every_point_of_the_unseen_weight_is_an_unseen_item_as_often_as_it_weighs(seen, weights):
    expected = np.tile(weights_or_none(weights), (len(seen), 1))
    for row, items in enumerate(seen.values()):
        expected[row, items] = 0

    unseen = negative_table(Histories.from_mapping(seen), NUM_ITEMS, weights)

    for row, total in enumerate(unseen.unseen_weight.tolist()):
        items = unseen.at(np.array([row]), (np.arange(total) + 0.5) / total)
        np.testing.assert_array_equal(np.bincount(items, minlength=NUM_ITEMS + 1), expected[row])


@needs_native
@pytest.mark.parametrize("count", [0, 1, 15, 16, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_native_and_numpy_draw_the_same(monkeypatch, weighted, count):
    rng = np.random.default_rng(0)
    seen = {user: rng.integers(1, NUM_ITEMS, rng.integers(0, 60)).tolist() for user in range(1, 30)}
    weights = np.r_[0, rng.integers(0, 9, NUM_ITEMS - 1), 2].astype(np.int32) if weighted else None
    unseen = negative_table(Histories.from_mapping(seen), NUM_ITEMS, weights)
    key = philox_key(5)

    native = unseen.draw(key, count)

    monkeypatch.setattr(_extension, "native", None)
    expected = unseen.draw(key, count)
    assert native.dtype == expected.dtype
    np.testing.assert_array_equal(native, expected)


def test_nothing_is_drawn_for_a_user_who_has_seen_all():
    unseen = negative_table(Histories.from_mapping({5: [1], 7: [3, 1, 2, 1]}), 3)

    with pytest.raises(ValueError, match="drawn for 1 of 2 users, who have seen all items"):
        unseen.draw(philox_key(0), 1)


def test_a_catalogue_too_large_for_ids_is_an_error():
    with pytest.raises(ValueError, match=f"item_num must be at most {MAX_ID}, got {MAX_ID + 1}"):
        negative_table(Histories.from_mapping({1: [1]}), MAX_ID + 1)
