"""Reading, checking and splitting histories."""

import gzip
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssept_ext import SASRecDataSet
from ssept_ext.data.histories import MAX_ID, Histories

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture
def read(tmp_path):
    """Write a file and read it."""

    def write_and_read(content, name="events.txt", **arguments):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return SASRecDataSet(path, **arguments)

    return write_and_read


def test_two_columns_are_in_the_order_of_the_file(read):
    dataset = read("2 7\n1 5\n2 3\n1 5\n")

    assert dataset.User == {1: [5, 5], 2: [7, 3]}
    assert (dataset.usernum, dataset.itemnum) == (2, 7)
    assert dataset.Items == {3, 5, 7}


def test_three_columns_are_sorted_by_time_within_each_user(read):
    assert read("1 10 30\n2 20 5\n1 11 9\n1 12 20\n").User == {1: [11, 12, 10], 2: [20]}


@pytest.mark.parametrize("late", ["5", "5.5"], ids=["digits", "floats"])
def test_events_of_equal_time_stay_in_the_order_of_the_file(read, late):
    lines = [f"1 {item} {late}" for item in range(40, 0, -1)] + ["1 99 4"]

    assert read("\n".join(lines)).User[1] == [99, *range(40, 0, -1)]


def test_times_are_ordered_as_numbers_and_may_be_negative_or_floats(read):
    assert read("1 1 10\n1 2 9.5\n1 3 -2e3\n1 4 9\n").User[1] == [3, 4, 2, 1]


def test_integer_times_beyond_the_precision_of_floats_are_told_apart(read):
    when = 2**60

    assert read(f"1 1 {when + 1}\n1 2 {when}\n").User[1] == [2, 1]
    assert read(f"1 1 {when + 1} \n1 2 {when} \n").User[1] == [2, 1]


@pytest.mark.parametrize(
    ("col_sep", "line"),
    [(" ", "3 4"), ("\t", "3\t4"), (",", "3,4"), ("::", "3::4"), (None, "3 \t 4"), ("|", "3|4")],
)
def test_any_separator(read, col_sep, line):
    assert read(f"{line}\n{line}\n", col_sep=col_sep).User == {3: [4, 4]}


def test_a_part_of_the_separator_does_not_separate(read):
    with pytest.raises(ValueError, match=r"line 2: .*'1:2'"):
        read("1::2\n1:2\n", col_sep="::")


@pytest.mark.parametrize(
    "content",
    [
        b"1 2\n3 4\n\n\n",
        b"1 2\n3 4",
        b"1 2\r\n3 4\r\n",
        b"1 2 \n3 4\t\n",
        b"\xef\xbb\xbf1 2\n3 4\n",
        b"\n1 2\n\n3 4\n",
    ],
    ids=["blank end", "no newline", "CRLF", "trailing blanks", "byte-order mark", "blank lines"],
)
def test_the_layout_of_lines_is_free(read, content):
    assert read(content).User == {1: [2], 3: [4]}


@pytest.mark.parametrize("name", ["events.txt", "events.txt.gz"])
@pytest.mark.parametrize("content", [b"1 2\n", gzip.compress(b"1 2\n", mtime=0)])
def test_gzip_is_told_by_the_content_and_not_by_the_name(read, content, name):
    assert read(content, name).User == {1: [2]}


def test_a_broken_gzip_file_is_refused_by_name(read):
    with pytest.raises(ValueError, match=r"events\.gz is damaged: "):
        read(gzip.compress(b"1 2\n" * 99)[:-9], "events.gz")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("1", "2 or 3 columns expected, got 1"),
        ("1 2 3 4", "2 or 3 columns expected, got 4"),
        ("1 2 3", "3 columns after lines of 2"),
        ("1  2", "item id must be an integer"),
        ("0 2", "user id must be an integer from 1"),
        ("1 0", "item id must be an integer from 1"),
        ("1 -3", "item id must be an integer from 1"),
        ("1.0 2", "user id must be an integer"),
        ("1 x", "item id must be an integer"),
        (f"1 {MAX_ID + 1}", f"item id must be an integer from 1 to {MAX_ID}"),
        (f"{10**30} 1", "user id must be an integer"),
    ],
)
def test_a_malformed_line_is_named_by_file_number_and_text(read, bad, reason):
    with pytest.raises(ValueError, match=r"events\.txt, line 3: ") as caught:
        read(f"5 6\n7 8\n{bad}\n9 9\n")

    assert reason in str(caught.value)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("bad", ["nan", "", "noon", "inf", str(2**63)])
def test_a_time_that_is_no_number_is_refused(read, bad):
    with pytest.raises(ValueError, match=r"line 2: time must be a number"):
        read(f"1,2,3\n1,2,{bad}\n", col_sep=",")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(read, content):
    with pytest.raises(ValueError, match=r"events\.txt is empty"):
        read(content)


@pytest.mark.parametrize(("line", "with_time"), [("1 2", False), ("1 2 3", True)])
def test_with_time_says_whether_there_is_a_third_column(read, line, with_time):
    assert read(line).with_time is with_time
    assert SASRecDataSet(histories={1: [1]}).with_time is None


def test_an_empty_separator_is_refused(read):
    with pytest.raises(ValueError, match="col_sep must be at least one character"):
        read("1 2\n", col_sep="")


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        SASRecDataSet(tmp_path / "none.txt")


@given(st.lists(st.tuples(*[st.integers(1, 50)] * 3), min_size=1))
def test_plain_digits_read_the_same_by_both_parsers(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("data")
    lines = [f"{user} {item} {when}" for user, item, when in events]
    (folder / "fast").write_text("\n".join(lines))
    (folder / "careful").write_text(" \n".join(lines))  # the trailing blank is not for the fast one

    assert SASRecDataSet(folder / "fast").User == SASRecDataSet(folder / "careful").User


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


def test_gaps_in_ids_have_no_entry(read):
    dataset = read("3 9\n7 2\n")

    assert (dataset.usernum, dataset.itemnum) == (7, 9)
    assert set(dataset.user_train) == {3, 7}


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

    assert [array.dtype for array in dataset.histories("all")] == [np.int64] * 3


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [("ml-1m", 6040, 3416, 999_604), ("games", 31_013, 23_715, 287_107)],
)
def test_public_data_sets_have_their_known_sizes(name, users, items, events):
    dataset = SASRecDataSet(SHARED / f"{name}.txt.gz")

    assert (dataset.usernum, dataset.itemnum) == (users, items)
    assert sum(map(len, dataset.User.values())) == events


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_movielens_is_read_in_two_seconds_of_processor_time():
    start = time.process_time()  # not the clock: other work on the machine is not ours

    SASRecDataSet(SHARED / "ml-1m.txt.gz")

    assert time.process_time() - start < 2
