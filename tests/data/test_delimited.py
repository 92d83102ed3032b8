"""Events from delimited text: any delimiter, quoting and compression, and errors that name the line."""

import gzip

import pytest
from support.interactions import histories

from ssept_ext.data.sources.formats import read_source


@pytest.mark.usefixtures("_in_blocks")
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


@pytest.mark.usefixtures("_in_blocks")
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


@pytest.mark.usefixtures("_in_blocks")
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
        (
            gzip.compress(b"user,item,timestamp\n" + b"1,2,3\n" * 9, mtime=0)[:-9],
            "log.csv is damaged",
        ),
    ],
    ids=["empty", "a header alone", "a column twice", "cut gzip"],
)
def test_files_without_events_are_refused(csv, content, message):
    with pytest.raises(ValueError, match=message):
        csv(content)


def titled(*titles, line_end="\n"):
    """Lines of user, title, item and time, one for each title, without any quoting."""
    lines = [f"{user}\t{title}\t7\t{user}" for user, title in enumerate(titles, 1)]
    return line_end.join(["user\ttitle\titem\ttimestamp", *lines, ""])


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ("plain", "a quote opens a field and is not closed"),
        ('"Foo" Fighters', "a quoted field is followed by text"),
        ('says "hi"', "a quoted field is followed by text"),
        ('12"', "without quoting all these lines are events"),
    ],
)
def test_a_quote_that_is_never_closed_is_named_by_its_line(csv, later, reason, line_end):
    titles = ["a"] * 5 + ['"Heroes'] + ["a"] * 1990 + [later] + ["a"] * 3

    with pytest.raises(ValueError, match=rf"log\.csv, line 7: .*{reason}.*quoting=False.*Heroes"):
        csv(titled(*titles, line_end=line_end), delimiter="\t")


def test_an_open_quote_in_the_header_is_named(csv):
    with pytest.raises(ValueError, match="line 1: a quote is not closed in the line of the header"):
        csv('user,item,"timestamp\n' + "1,2,3\n" * 9 + '1,2",3\n')


def test_without_quoting_quotes_are_text(csv):
    titles = ['"Heroes', "plain", '12"', '"both"']

    interactions = csv(titled(*titles), delimiter="\t", item="title", quoting=False)

    assert interactions.item_ids.raw.tolist() == titles


@pytest.mark.parametrize("field", ["x" * 200_000, '"' + "x\n" * 100_000 + '"'])
def test_a_line_after_a_long_field_has_its_number(csv, field):
    number = 3 + field.count("\n")

    with pytest.raises(ValueError, match=f"line {number}: timestamp must be a number"):
        csv(f"user,item,timestamp,text\na,x,1,{field}\na,x,never,y\n")


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("text", ["Foo\nbar, baz, qux", "a\n\nb", "1,2\n3", "x,y,z\n"])
def test_text_of_several_lines_is_one_field(csv, text):
    interactions = csv(f'user,item,text\nann,7,"{text}"\nbob,8,"{text}"\n', timestamp=None)

    assert histories(interactions) == {"ann": [7], "bob": [8]}


def test_text_that_is_not_read_may_be_in_any_encoding(csv):
    with pytest.raises(ValueError, match="line 3: timestamp must be a number"):
        csv(b"user,item,timestamp,title\na,x,1,caf\xe9\na,x,never,y\n")


@pytest.mark.parametrize(
    "number", ["1_0", "\u0661", " 5", "5 ", "0x10", "nan", "infinity", "1e400", "1e", ""]
)
def test_a_time_is_written_in_plain_digits(csv, number):
    with pytest.raises(ValueError, match="line 3: timestamp must be a number"):
        csv(f"user,item,timestamp\na,x,1\na,y,{number}\n")


@pytest.mark.parametrize("key", ["1_0", "\u0661", " 5", "+5", "05", "5.0", "nan"])
@pytest.mark.parametrize("column", [0, 1])
def test_an_id_that_must_be_an_integer_is_written_in_plain_digits(tmp_path, key, column):
    fields = ["7", "7", "4", "1"]
    fields[column] = key
    (tmp_path / "log").write_text("7::7::4::1\n" + "::".join(fields) + "\n")

    with pytest.raises(ValueError, match="line 2: (user|item) must be an integer"):
        read_source(tmp_path / "log", "movielens-1m")


def test_ids_in_other_digits_stay_text(csv):
    keys = ["1_0", "\u0661", " 5", "0x10"]

    assert (
        csv(
            "item,user\n" + "".join(f"i,{key}\n" for key in keys), timestamp=None
        ).user_ids.raw.tolist()
        == keys
    )


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize(
    ("times", "order"),
    [
        ([f"{2**60 + 1}", f"{2**60}", f"{2**60 - 2000}.5"], None),
        (["1588615855.00000002", "1588615855.00000001"], None),
        (["9007199254740993", "9007199254740992", "1.5"], None),
        (["1588615855068000002", "1588615855067000001", "1.5"], [2, 1, 0]),
        (["1.0", "1.00", "1", "0.5"], [3, 0, 1, 2]),
        (["-0.0", "0", "1e-400"], None),
    ],
)
def test_the_order_of_times_is_exact_or_refused(csv, times, order):
    content = "user,item,timestamp\n" + "".join(
        f"u,{row},{when}\n" for row, when in enumerate(times)
    )

    if order is None:
        with pytest.raises(ValueError, match=r"log\.csv: times .* are the same number in float64"):
            csv(content)
    else:
        assert histories(csv(content)) == {"u": order}


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize(
    "times",
    [
        ["9999-12-31", "2020-01-01"],
        ["9999-12-31T23:59:59.5", "2020-01-01T00:00:00"],
        ["2020-01-01T00:00:00.000000002", "2020-01-01T00:00:00.000000001"],
        ["2020-01-01 10:00:00+01:00", "2020-01-01 08:00:00Z"],
        ["2020-01-02 00:00", "2020-01-01"],
    ],
)
def test_dates_of_any_age_and_precision(csv, times):
    content = "user,item,timestamp\n" + "".join(
        f"u,{row},{when}\n" for row, when in enumerate(times)
    )

    assert histories(csv(content)) == {"u": [1, 0]}


def test_a_good_date_is_not_blamed_for_a_bad_one(csv):
    with pytest.raises(ValueError, match="line 3: timestamp must be"):
        csv("user,item,timestamp\na,x,9999-12-31\na,y,2020-13-01\n")


@pytest.mark.usefixtures("_in_blocks")
def test_times_with_and_without_a_zone_do_not_mix(csv):
    with pytest.raises(
        ValueError, match="line 3: timestamp is a date after lines where it is a date with a zone"
    ):
        csv("user,item,timestamp\na,x,2020-01-01T00:00:00Z\na,y,2020-01-01T00:00:00\n")


def test_a_control_character_between_separators_of_two_characters_separates_nothing(tmp_path):
    (tmp_path / "log").write_text("1::2::4::3\n1::2\x1f4::3\n")

    with pytest.raises(ValueError, match="line 2: 4 columns expected, got 3"):
        read_source(tmp_path / "log", "movielens-1m")


@pytest.mark.parametrize("delimiter", ["", '"', "\n", "a\r"])
def test_a_delimiter_that_separates_nothing_is_refused(csv, delimiter):
    with pytest.raises(ValueError, match="delimiter must be neither empty, a quote nor a line end"):
        csv("user,item\n1,2\n", delimiter=delimiter)


def test_ids_that_differ_only_in_writing_are_counted_in_a_warning(csv):
    with pytest.warns(UserWarning, match=r"column 'user': 2 ids .* such as '1' and '1.0'.*stay"):
        interactions = csv("user,item\n1,x\n1.0,x\n01,x\nann,x\n", timestamp=None)

    assert interactions.user_ids.raw.tolist() == ["1", "1.0", "01", "ann"]


def test_ids_that_differ_in_more_are_no_reason_to_warn(csv, recwarn):
    csv("user,item\n1.0,x\n2.0,y\nann,x\nAnn,007\n,".removesuffix(","), timestamp=None)

    assert not recwarn.list
