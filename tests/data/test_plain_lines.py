"""Lines `user item time` of plain numbers: what is no plain number is refused, and no order is lost."""

import pytest

from ssept_ext import SASRecDataSet


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, **arguments):
        (tmp_path / "events.txt").write_text(text)
        return SASRecDataSet(tmp_path / "events.txt", **arguments).User

    return write_and_read


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
        assert read(text) == {1: order}
