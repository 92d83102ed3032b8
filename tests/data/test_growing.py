"""Events added to the histories that a model knows."""

from uuid import UUID

import numpy as np
import pytest
from support.interactions import histories, of_rows

from ssept_ext.data.growing import grow, neighbours
from ssept_ext.data.histories import Histories
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.known_histories import KnownHistories

KNOWN = (("bob", 60, 1), ("bob", 70, 3), ("ann", 70, 2), ("ann", 50, 9))


def known(*rows):
    return KnownHistories.from_interactions(of_rows(*(rows or KNOWN), **times_of(rows or KNOWN)))


def grown(*rows, of=None):
    return grow(of or known(), of_rows(*rows, **times_of(rows)))


def times_of(rows):
    return {} if len(rows[0]) == 3 else {"timestamp": None}


def items_of(growth):
    """Raw user id to raw item ids in order."""
    user_ids, item_ids, found, _ = (
        getattr(growth.known, name) for name in ("user_ids", "item_ids", "histories", "item_counts")
    )
    return histories(Interactions(found.offsets, found.items, found.times, user_ids, item_ids))


def test_new_users_and_items_have_the_next_numbers_and_known_ones_keep_theirs():
    growth = grown(("eve", 80, 10), ("ann", 90, 11))

    assert growth.known.user_ids.raw.tolist() == ["bob", "ann", "eve"]
    assert growth.known.item_ids.raw.tolist() == [60, 70, 50, 80, 90]
    assert items_of(growth) == {"bob": [60, 70], "ann": [70, 50, 90], "eve": [80]}
    assert growth[1:] == (2, 0, 1, 2)


def test_an_event_that_is_older_than_known_ones_comes_before_them():
    growth = grown(("bob", 50, 2), ("ann", 60, 5))

    assert items_of(growth) == {"bob": [60, 50, 70], "ann": [70, 60, 50]}
    assert growth.known.histories.times.tolist() == [1, 2, 3, 2, 5, 9]


def test_a_known_event_is_not_added_again():
    growth = grown(("bob", 70, 3), ("bob", 70, 4), ("ann", 60, 3), ("bob", 60, 1))

    assert items_of(growth) == {"bob": [60, 70, 70], "ann": [70, 60, 50]}
    assert (growth.new_events, growth.known_events) == (2, 2)


def test_nothing_changes_if_all_events_are_known():
    growth = grown(*KNOWN)

    assert items_of(growth) == {"bob": [60, 70], "ann": [70, 50]}
    assert growth[1:] == (0, 4, 0, 0)


@pytest.mark.parametrize("row", [("bob", 60), ("bob", 60, 0)], ids=["no times", "times"])
def test_without_known_times_every_event_is_new_and_comes_last(row):
    growth = grown(row, of=known(("bob", 60), ("bob", 70)))

    assert items_of(growth) == {"bob": [60, 70, 60]}
    assert growth.known.histories.times is None
    assert (growth.new_events, growth.known_events) == (1, 0)


def test_users_whose_events_are_unknown_and_users_without_any_are_kept():
    empty = KnownHistories(
        known().user_ids,
        known().item_ids,
        Histories(np.arange(1, 3), *map(np.array, ([0, 0, 1], [3]))),
    )

    assert items_of(grown(("eve", 70), of=empty)) == {"bob": [], "ann": [50], "eve": [70]}


def test_ids_may_be_uuids():
    ids = [UUID(int=i) for i in range(3)]
    growth = grown((ids[2], 70, 5), of=known((ids[0], 60, 1), (ids[1], 70, 2)))

    assert items_of(growth) == {ids[0]: [60], ids[1]: [70], ids[2]: [70]}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([("eve", 99, 1), ("kim", 98, 1)], ValueError, "none of the 2 users and 2 items .* known"),
        ([("bob", 60)], ValueError, "events must have times"),
        ([(7, 60, 1)], TypeError, "user ids must be of type str, as those known, got int64"),
        ([("bob", "60", 1)], TypeError, "item ids must be of type int64, as those known, got str"),
    ],
)
def test_events_that_cannot_be_added_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        grown(*rows)


def test_a_model_without_histories_cannot_be_added_to():
    counts = np.zeros(4, np.int64)
    without = KnownHistories(known().user_ids, known().item_ids, None, counts)

    with pytest.raises(ValueError, match="saved without histories"):
        grown(("bob", 60, 1), of=without)


def test_neighbours_of_a_new_item_are_the_known_items_near_it_in_each_history():
    events = Histories.from_mapping({1: [1, 9, 2, 8], 2: [3, 3], 3: [9, 4, 1, 1, 1, 1, 5]})

    of, near = neighbours(events, num_known=5)

    pairs = sorted(zip(of.tolist(), near.tolist(), strict=True))
    assert pairs == [(8, 1), (8, 2), (9, 1), (9, 1), (9, 1), (9, 1), (9, 1), (9, 2), (9, 4)]
