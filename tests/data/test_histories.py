"""`Histories`: arrays that fit together, their rows, and the ids that they take."""

import numpy as np
import pytest

from ssept_ext import SASRecDataSet
from ssept_ext.data.histories import MAX_ID, Histories, check_ids, join


@pytest.mark.parametrize(
    ("users", "offsets", "items", "message"),
    [
        ([1, 1], [0, 1, 2], [3, 4], "users must be distinct, got 1 ids for 2 rows"),
        ([1, 2], [0, 1], [3], "offsets must be 3 integers that rise from 0 to the 1 events"),
        ([1, 2], [0, 2, 1], [3], "offsets must be"),
        ([1], [1, 2], [3, 4], "offsets must be"),
        ([1], [0, 1], [3, 4], "offsets must be"),
        ([1], [0, 1], [0], "item id must be an integer from 1 .*, got 0"),
        ([1, 2], [0, 1.5, 2], [3, 4], "offsets must be"),
        ([1, 2], np.array([0, 2, 1], np.uint64), [3], "offsets must be"),
        ([0], [0, 1], [3], "user id must be an integer from 1 .*, got 0"),
        ([1], [0, 1], [1.5], "item id must be an integer from 1 .*, got .*1.5"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(users, offsets, items, message):
    with pytest.raises(ValueError, match=message):
        SASRecDataSet(histories=Histories(np.array(users), np.array(offsets), np.array(items)))


def test_histories_keep_the_order_of_users_and_empty_rows():
    users, offsets, items, _ = Histories.from_mapping({7: [3, 1], 2: [], 4: [5]})

    assert users.tolist() == [7, 2, 4]
    assert offsets.tolist() == [0, 2, 2, 3]
    assert items.tolist() == [3, 1, 5]


def test_a_digest_is_that_of_the_content_on_every_machine():
    histories = Histories.from_mapping({7: [3, 1], 2: [], 4: [5]})

    assert histories.digest() == "de74e26fe70df683"
    assert Histories.from_mapping({7: [3], 2: [1], 4: [5]}).digest() != histories.digest()
    assert Histories.from_mapping({4: [5], 7: [3, 1]}).digest() != histories.digest()
    assert Histories.from_mapping({7: [3, 1], 4: [5]}).digest() == histories.digest()


def test_times_are_part_of_a_digest_only_if_asked_for():
    rows = Histories.from_mapping({7: [3, 1], 4: [5]})
    timed = rows._replace(times=np.array([10, 20, 30]))
    later = rows._replace(times=np.array([10, 20, 31]))

    assert timed.digest() == later.digest() == rows.digest(with_times=True) == rows.digest()
    assert len({x.digest(with_times=True) for x in (rows, timed, later)}) == 3


@pytest.mark.parametrize("times", [[1], [[1, 2]], [1.0, 2.0]])
def test_times_that_do_not_fit_the_events_are_refused(times):
    histories = Histories.from_mapping({1: [3, 4]})._replace(times=np.array(times))

    with pytest.raises(ValueError, match="times must be 2 integers, one for each event, got"):
        histories.checked()


@pytest.mark.parametrize("history", [{3, 4}, frozenset({3}), {3: 1}])
def test_a_history_has_an_order(history):
    with pytest.raises(TypeError, match=f"must be sequences.*, got a {type(history).__name__}"):
        Histories.from_mapping({1: [2], 5: history})


def test_rows_are_joined_event_by_event():
    first = Histories.from_mapping({7: [3, 1], 2: [], 4: [5]})
    second = Histories.from_mapping({7: [], 2: [8], 4: [6, 6]})

    assert join(first, second).to_dict() == {7: [3, 1], 2: [8], 4: [5, 6, 6]}
    assert join(first, second).times is None


def test_times_are_joined_where_all_parts_have_them():
    first = Histories.from_mapping({7: [3, 1], 2: []})._replace(times=np.array([30, 10]))
    second = Histories.from_mapping({7: [5], 2: [8]})

    assert join(first, second).times is None
    joined = join(first, second._replace(times=np.array([50, 80])))
    assert joined.times.tolist() == [30, 10, 50, 80]
    assert joined.oldest_times().tolist() == [30, 80]


def test_times_follow_their_events():
    histories = Histories.from_mapping({7: [3, 1, 2], 4: [], 5: [6, 8]})
    histories = histories._replace(times=np.array([1, 2, 3, 10, 20]))

    assert histories.of([5, 9, 7]).times.tolist() == [10, 20, 1, 2, 3]
    assert histories.part(slice(1, 3)).times.tolist() == [10, 20]
    assert histories.between(np.array([1, 0, 0]), np.array([3, 0, 1])).times.tolist() == [2, 3, 10]
    assert histories.oldest_times().tolist() == [1, 0, 10]
    assert join(histories, histories).times.tolist() == [1, 2, 3, 1, 2, 3, 10, 20, 10, 20]
    assert join(histories, histories._replace(times=None)).times is None


def test_the_next_event_is_expected_after_the_median_of_the_gaps_the_shorter_of_two():
    times = [5, 5, 6, 16, 1, 4, 14, 14, 17]
    histories = Histories(np.arange(4), np.array([0, 1, 4, 7, 9]), np.ones(9, int), np.array(times))

    assert histories.usual_next_times().tolist() == [5, 16 + 1, 14 + 3, 17 + 3]


@pytest.mark.parametrize("times", [np.arange(2), np.arange(3.0), np.ones((3, 1), int)])
def test_times_that_are_no_integers_or_do_not_fit_the_events_are_refused(times):
    histories = Histories(np.array([7]), np.array([0, 3]), np.array([3, 1, 2]), times)

    with pytest.raises(ValueError, match="times must be 3 integers"):
        histories.checked()


def test_a_digest_covers_times_only_where_it_is_asked_to():
    histories = Histories.from_mapping({7: [3, 1]})
    early, late = (histories._replace(times=np.array([1, x])) for x in (2, 3))

    assert early.digest() == late.digest() == histories.digest()
    assert early.digest(with_times=True) != late.digest(with_times=True)


def test_the_oldest_item_of_an_empty_row_is_0():
    assert Histories.from_mapping({7: [3, 1], 2: [], 4: [5], 1: []}).oldest().tolist() == [
        3,
        0,
        5,
        0,
    ]


@pytest.mark.parametrize(
    "ids", [[], [1, 2], (MAX_ID,), {3}, np.array([2], np.uint8), [np.uint64(1), np.int8(2)]]
)
def test_integers_of_every_kind_are_ids(ids):
    assert check_ids(ids, "item").tolist() == list(ids)
    assert check_ids(ids, "item").dtype == np.int64


@pytest.mark.parametrize(
    ("ids", "bad"),
    [
        ([1, 0], "0"),
        ([MAX_ID + 1], str(MAX_ID + 1)),
        ([2**70], str(2**70)),
        ([1, 2.0], "2.0"),
        (["1"], "'1'"),
        ([[1], [2, 3]], r"\[1\]"),
        (np.array([[1]]), r"array\(\[1\]\)"),
        ([None], "None"),
        ([2, True], "True"),
        ([2, np.True_], "(np.)?True_?"),
        ([2, np.float64(3)], r"(np.float64\()?3.0\)?"),
    ],
)
def test_what_is_no_id_is_named(ids, bad):
    with pytest.raises(ValueError, match=f"item id must be an integer from 1 to .*, got {bad}$"):
        check_ids(ids, "item")
