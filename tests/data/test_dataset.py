"""Checking, splitting and changing the histories of a data set."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssept_ext import SASRecDataSet
from ssept_ext.data.histories import Histories


def test_the_last_two_events_are_held_out():
    dataset = SASRecDataSet(histories={1: [10, 11, 12, 13], 2: [20, 21, 22]})

    assert dataset.user_train == {1: [10, 11], 2: [20]}
    assert dataset.user_valid == {1: [12], 2: [21]}
    assert dataset.user_test == {1: [13], 2: [22]}


@pytest.mark.parametrize("history", [[], [4], [4, 5]])
def test_users_with_fewer_than_three_events_train_only(history):
    dataset = SASRecDataSet(histories={1: history, 2: [1, 2, 3]})

    assert dataset.user_train[1] == history
    assert dataset.user_valid[1] == dataset.user_test[1] == []


def test_split_again_changes_nothing():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4]})
    before = (dict(dataset.user_train), dict(dataset.user_valid), dict(dataset.user_test))

    dataset.split()

    assert (dataset.user_train, dataset.user_valid, dataset.user_test) == before


def test_split_takes_the_sizes_of_the_parts():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4, 5], 2: [1, 2, 3], 3: [1, 2]})

    dataset.split(valid_size=2, test_size=1, min_interactions=4)

    assert dataset.user_train == {1: [1, 2], 2: [1, 2, 3], 3: [1, 2]}
    assert dataset.user_valid == {1: [3, 4], 2: [], 3: []}
    assert dataset.user_test == {1: [5], 2: [], 3: []}
    assert dataset.users_with("valid").tolist() == [1]


def test_a_part_may_be_of_no_events():
    dataset = SASRecDataSet(histories={1: [1, 2, 3]})

    dataset.split(valid_size=2, test_size=0)

    assert (dataset.user_train, dataset.user_valid) == ({1: [1]}, {1: [2, 3]})
    assert dataset.user_test == {1: []}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"valid_size": -1}, "valid_size must be an integer of at least 0, got -1"),
        ({"test_size": 1.5}, "test_size must be an integer of at least 0, got 1.5"),
        ({"test_size": 2}, r"min_interactions must be at least .* \+ 1 = 4, got 3"),
    ],
)
def test_sizes_that_leave_no_training_event_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        SASRecDataSet(histories={1: [1, 2, 3]}).split(**sizes)


@pytest.mark.parametrize("limit", ["3", 2.5, 0])
def test_a_limit_that_is_no_count_is_refused(limit):
    message = f"min_interactions must be an integer of at least 1, got {limit!r}"
    with pytest.raises(ValueError, match=message):
        SASRecDataSet(histories={1: [1, 2, 3]}).split(min_interactions=limit)


def test_split_again_holds_out_nothing_where_nothing_was():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4]}, hold_out=False)

    dataset.User[1].append(5)
    dataset.split()

    assert dataset.user_train == {1: [1, 2, 3, 4, 5]}


def test_split_follows_a_changed_user():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4]})

    dataset.User[1].append(5)
    dataset.split()

    assert dataset.user_test == {1: [5]}


def test_histories_may_be_numpy():
    dataset = SASRecDataSet(histories={np.int64(2): np.array([4, 5, 6])})

    assert dataset.User == {2: [4, 5, 6]}
    assert type(dataset.User[2][0]) is int


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({5: [3, 0]}, r"item id .* got 0 \(user 5\)"),
        ({5: [3, 1.5]}, r"item id .* got 1.5 \(user 5\)"),
        ({5: ["a"]}, r"item id .* got 'a' \(user 5\)"),
        ({5: [[1, 2], [3, 4]]}, r"item id .* \(user 5\)"),
        ({5: [2**70]}, r"item id must be an integer from 1 to 2147483647"),
        ({0: [1]}, r"user id .* got 0"),
        ({"u": [1]}, r"user id .* got 'u'"),
        ({5: [True]}, r"item id .* got True \(user 5\)"),
    ],
)
def test_bad_ids_in_histories_are_named(histories, message):
    with pytest.raises(ValueError, match=message):
        SASRecDataSet(histories=histories)


@pytest.mark.parametrize("histories", [{}, {1: []}])
def test_histories_without_events_are_refused(histories):
    with pytest.raises(ValueError, match="hold no events"):
        SASRecDataSet(histories=histories)


@pytest.mark.parametrize("arguments", [{}, {"filename": "x", "histories": {1: [1]}}])
def test_exactly_one_source_is_needed(arguments):
    with pytest.raises(ValueError, match="either filename or histories"):
        SASRecDataSet(**arguments)


def test_without_hold_out_every_event_is_for_training():
    dataset = SASRecDataSet(histories={1: [10, 11, 12, 13], 2: [20]}, hold_out=False)

    assert dataset.user_train == dataset.User == {1: [10, 11, 12, 13], 2: [20]}
    assert dataset.user_valid == dataset.user_test == {1: [], 2: []}


PARTS = {"all": "User", "train": "user_train", "valid": "user_valid", "test": "user_test"}


@given(
    st.dictionaries(
        st.integers(1, 99), st.lists(st.integers(1, 50), max_size=6), min_size=1, max_size=9
    ).filter(lambda histories: any(histories.values())),
    st.lists(st.integers(1, 99), max_size=9),
    st.booleans(),
)
def test_arrays_and_dicts_hold_the_same(histories, others, hold_out):
    asked = [*histories, *others]  # some twice, some without a history
    for part, name in PARTS.items():
        arrays = SASRecDataSet(histories=histories, hold_out=hold_out)
        dicts = SASRecDataSet(histories=histories, hold_out=hold_out)
        expected = getattr(dicts, name)

        assert arrays.histories(part).to_dict() == expected
        for dataset in (arrays, dicts):
            found = dataset.histories(part, asked)
            bounds = found.offsets.tolist()
            rows = [found.items[a:b].tolist() for a, b in pairwise(bounds)]
            assert found.users.tolist() == asked
            assert rows == [expected.get(user, []) for user in asked]
            with_events = [user for user, items in expected.items() if items]
            assert dataset.users_with(part).tolist() == with_events


@pytest.mark.parametrize(("part", "name"), PARTS.items())
def test_changes_to_a_dict_are_never_ignored(part, name):
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4], 2: [5]})

    getattr(dataset, name)[2].append(9)
    setattr(dataset, "User" if name == "user_train" else "user_train", {3: [7, 8]})

    assert dataset.histories(part, [2]).items.tolist()[-1] == 9
    assert dataset.users_with(part).tolist()[-1] == 2
    other = dataset.histories("all" if part == "train" else "train")
    assert part == "train" or other.to_dict() == {3: [7, 8]}


def _append(train):
    train[1].append(9)


def _replace_an_item(train):
    train[1][0] = 9


def _replace_a_history(train):
    train[1] = (9,)


def _remove_a_user(train):
    del train[1]


def _move_a_user(train):
    train[1] = train.pop(1)


def _replace_a_history_by_an_array(train):
    train[1] = np.array([9, 8])


@pytest.mark.parametrize(
    "change",
    [
        *(_append, _replace_an_item, _replace_a_history, _replace_a_history_by_an_array),
        *(_remove_a_user, _move_a_user),
    ],
)
def test_a_dict_that_changed_after_it_was_read_is_read_again(change):
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4], 2: [5]})
    dataset.user_train  # noqa: B018
    dataset.histories("train")

    change(dataset.user_train)

    expected = Histories.from_mapping(dataset.user_train).to_dict()
    assert list(dataset.histories("train").to_dict().items()) == list(expected.items())
    assert dataset.histories("train", [2, 1]).to_dict() == {2: [5], 1: expected.get(1, [])}


def test_a_dict_that_did_not_change_is_laid_out_in_arrays_once():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4], 2: [5]})
    dataset.user_train  # noqa: B018

    first = dataset.histories("train")

    assert dataset.histories("train").items is first.items
    assert dataset.histories("train", [1, 2]).items is first.items


@pytest.mark.parametrize("wrong", [{1: [1, np.array([2, 3])]}, {1: [1, 2.5]}, [[1, 2]]])
def test_a_dict_that_became_wrong_after_it_was_read_is_refused(wrong):
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4]})
    dataset.user_train = {1: [1, 2]}
    dataset.histories("train")

    dataset.user_train = wrong

    with pytest.raises((TypeError, ValueError), match="histories"):
        dataset.histories("train")


def test_the_number_of_users_follows_an_assigned_dict():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4], 2: [5]})
    before = dataset.num_users

    dataset.user_train = {1: [1]}

    assert (before, dataset.num_users) == (2, 1)


def test_changes_to_user_reach_the_parts_at_the_next_split_only():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4]})

    dataset.User[1].append(5)

    assert dataset.user_test == {1: [4]}
    assert dataset.histories("test").to_dict() == {1: [4]}
    dataset.split()
    assert dataset.histories("test").to_dict() == dataset.user_test == {1: [5]}


def test_bad_ids_in_a_changed_dict_are_named():
    dataset = SASRecDataSet(histories={1: [1, 2, 3, 4]})

    dataset.user_train[1].append(0)

    with pytest.raises(ValueError, match=r"item id .* got 0 \(user 1\)"):
        dataset.histories("train")


def test_an_unknown_part_is_an_error():
    with pytest.raises(ValueError, match="part must be one of .* got 'training'"):
        SASRecDataSet(histories={1: [1]}).histories("training")


def test_arrays_are_taken_without_a_copy():
    histories = Histories.from_mapping({2: [4, 5, 6]})

    dataset = SASRecDataSet(histories=histories)

    assert np.shares_memory(dataset.histories("all").items, histories.items)


def test_arrays_of_narrow_integers_are_widened():
    narrow = (np.array(ids, np.int32) for ids in ([2], [0, 3], [4, 5, 6]))

    dataset = SASRecDataSet(histories=Histories(*narrow))

    assert [array.dtype for array in dataset.histories("all")[:3]] == [np.int64] * 3


def timed():
    """Users 1 and 2, whose item i is of time 10 * i."""
    items = np.array([1, 2, 3, 4, 5])
    return SASRecDataSet(
        histories=Histories(np.array([1, 2]), np.array([0, 4, 5]), items, 10 * items)
    )


@pytest.mark.parametrize("read_as_dict", [False, True])
@pytest.mark.parametrize("users", [None, [2, 1], [1]])
@pytest.mark.parametrize(("part", "name"), PARTS.items())
def test_times_follow_the_events_of_each_part(part, name, users, read_as_dict):
    dataset = timed()
    if read_as_dict:
        getattr(dataset, name)

    found = dataset.histories(part, users)
    without = dataset.histories(part, users, with_times=False)

    assert found.times.tolist() == (10 * found.items).tolist()
    assert without.times is None
    assert without.items.tolist() == found.items.tolist()


def test_times_follow_the_events_to_another_split_and_other_numbers():
    dataset = timed()
    dataset.User  # noqa: B018
    dataset.split(1, 2, 4)

    moved = dataset.renumbered(np.array([0, 9, 3]), np.array([0, 6, 7, 8, 9, 5]))

    assert dataset.histories("test").times.tolist() == [30, 40]
    assert moved.histories("all").users.tolist() == [3, 9]
    assert moved.histories("all").times.tolist() == [50, 10, 20, 30, 40]


@pytest.mark.parametrize("users", [None, [2]])
@pytest.mark.parametrize(("part", "name"), PARTS.items())
def test_a_part_whose_dict_was_changed_has_no_times(part, name, users):
    dataset = timed()

    getattr(dataset, name)[1] = [7]

    assert dataset.histories(part, users).times is None


def test_histories_changed_before_a_split_have_no_times():
    dataset = timed()

    dataset.User[1].append(9)
    dataset.split()

    assert dataset.histories("train").times is None
