"""Lines `user item [time]` of plain numbers: what is no plain number is refused, and no order is lost."""

import gzip
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssept_ext import SASRecDataSet
from ssept_ext.data.histories import MAX_ID

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


@pytest.mark.parametrize("late", ["20", "20.5"], ids=["digits", "floats"])
def test_times_are_kept_rounded_down(read, late):
    dataset = read(f"1 10 30\n2 20 5\n1 11 9\n1 12 {late}\n")

    assert dataset.histories("all").times.tolist() == [9, 20, 30, 5]
    assert read("1 10\n").histories("all").times is None


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


def test_gaps_in_ids_have_no_entry(read):
    dataset = read("3 9\n7 2\n")

    assert (dataset.usernum, dataset.itemnum) == (7, 9)
    assert set(dataset.user_train) == {3, 7}


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


@pytest.mark.parametrize(
    "key", ["1_0", "\u0661", "+5", " 5", "5 ", "0x10", "nan", "1.0", "9" * 5000]
)
@pytest.mark.parametrize("column", ["user", "item"])
def test_an_id_is_written_in_plain_digits(read, key, column):
    line = f"{key},2,3" if column == "user" else f"2,{key},3"

    with pytest.raises(ValueError, match=rf"events\.txt, line 2: {column} id must be an integer"):
        read(f"1,2,3\n{line}\n", col_sep=",")


@pytest.mark.parametrize(
    "time", ["1_0", "\u0661", " 5", "0x10", "nan", "-inf", "Infinity", "1e400", "1e", "9" * 5000]
)
def test_a_time_is_written_in_plain_digits(read, time):
    with pytest.raises(ValueError, match=r"events\.txt, line 2: time must be a number"):
        read(f"1,2,3\n1,2,{time}\n", col_sep=",")


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ([f"{2**60 + 1}", f"{2**60}", f"{2**60 - 2000}.5"], None),
        (["1588615855.00000002", "1588615855.00000001"], None),
        (["1588615855068000002", "1588615855067000001", "1.5"], [3, 2, 1]),
        (["1.0", "1.00", "1", "0.5"], [4, 1, 2, 3]),
        (["-0.0", "0", "1e-400"], None),
        (["1e-999999999", "0"], None),
    ],
)
def test_the_order_of_times_is_exact_or_refused(read, times, order):
    text = "".join(f"1 {item} {time}\n" for item, time in enumerate(times, 1))

    if order is None:
        with pytest.raises(
            ValueError, match=r"events\.txt: times .* are the same number in float64"
        ):
            read(text)
    else:
        assert read(text).User == {1: order}
