"""Events from delimited text: any delimiter, quoting and compression, and errors that name the line."""

import gzip

import pytest
from support.interactions import histories


@pytest.mark.parametrize(
    ("fields", "kind", "expected"),
    [
        (["5", "-3", "0"], "int64", [5, -3, 0]),
        (["5", "007"], "str", ["5", "007"]),
        (["1", "9223372036854775808"], "str", ["1", "9223372036854775808"]),
        (["NA", "null", "nan"], "str", ["NA", "null", "nan"]),
        (["1.0"], "str", ["1.0"]),
        (['"a, ""b"""', '"c\nd"'], "str", ['a, "b"', "c\nd"]),
    ],
    ids=["integers", "leading zeros", "beyond int64", "names like nulls", "decimals", "quoted"],
)
def test_ids_in_a_csv_are_what_is_written(csv, fields, kind, expected):
    interactions = csv("item,user\n" + "".join(f"i,{field}\n" for field in fields), timestamp=None)

    assert interactions.user_ids.type == kind
    assert interactions.user_ids.raw.tolist() == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", b"\xef\xbb\xbfuser,item,timestamp\r\na,x,2\r\n\r\na,y,1\r\n"),
        ("log.bin", gzip.compress(b"user,item,timestamp\na,x,2\na,y,1", mtime=0)),
        ("log.csv", b"user,item,timestamp\na,x,2020-01-02\na,y,2020-01-01\n"),
        ("log.csv", b"user,item,timestamp\na,x,2020-01-02T00:00:00Z\na,y,2020-01-01T23:59:59Z\n"),
        ("log.csv", b"user,item,timestamp\na,x,1e3\na,y,2.5\n"),
    ],
    ids=["BOM, CRLF, blank line", "gzip, told by content", "dates", "datetimes", "decimals"],
)
def test_csv_files_of_any_kind(csv, name, content):
    assert histories(csv(content, name)) == {"a": ["y", "x"]}


def test_another_delimiter(csv):
    assert histories(csv("user|item\n1|2\n", delimiter="|", timestamp=None)) == {1: [2]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a,y", "3 columns expected, got 2"),
        ("a,y,2,z", "3 columns expected, got 4"),
        (",y,2", "user is missing"),
        ("a,,2", "item is missing"),
        ("a,y,", "timestamp must be a number or an ISO 8601 date"),
        ("a,y,noon", "timestamp must be a number"),
        ("a,y,nan", "timestamp must be a number"),
        ("a,y,2020-01-01", "timestamp is a date after lines where it is an integer"),
    ],
)
def test_a_bad_line_is_named_by_file_number_and_text(csv, line, reason):
    with pytest.raises(ValueError, match=r"log\.csv, line 4: ") as caught:
        csv(f'user,item,timestamp\n\n"a",x,1\n{line}\na,z,3\n')

    assert reason in str(caught.value)
    assert repr(line) in str(caught.value)


def test_a_line_after_a_quoted_line_end_has_its_number(csv):
    with pytest.raises(ValueError, match=r"line 4: .* 'b,2'"):
        csv('user,item,timestamp\n"a\nb",x,1\nb,2\n')


def test_quoted_line_ends_may_be_anywhere_in_a_file_of_many_blocks(csv):
    field = "line\n" * 1000

    interactions = csv("user,item\n" + f'"{field}",1\n' * 1000, timestamp=None)

    assert len(interactions) == 1000
    assert interactions.user_ids.raw.tolist() == [field]


def test_text_that_is_not_utf_8_is_named(csv):
    with pytest.raises(ValueError, match=r"log\.csv, line 3: .*can't decode"):
        csv(b"user,item,timestamp\na,x,1\n\xff,y,2\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "log.csv is empty"),
        (b"user,item,timestamp\n", "log.csv: it holds no events"),
        (b"user,user,item,timestamp\n1,1,1,1\n", "log.csv has 2 columns 'user'"),
        (gzip.compress(b"user,item,timestamp\n" + b"1,2,3\n" * 9)[:-9], "log.csv is damaged"),
    ],
    ids=["empty", "a header alone", "a column twice", "cut gzip"],
)
def test_files_without_events_are_refused(csv, content, message):
    with pytest.raises(ValueError, match=message):
        csv(content)
