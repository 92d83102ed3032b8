"""Damaged, cut and arbitrary files: a reader finds what a simple parser finds, or names the file in an error."""

import ast
import csv
import gzip
import io
import json
import re
import zipfile
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import REFUSED, damages, read_or_refused
from support.interactions import histories, sorted_histories

from ssept_ext import Interactions, SASRecDataSet
from ssept_ext.data.id_map import load_id_maps
from ssept_ext.data.sources.formats import read_source

pytestmark = pytest.mark.filterwarnings("ignore:column .* differ from another")
few = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def typed(ids):
    """What a column of text holds: integers if all look so."""
    plain = all(re.fullmatch("0|-?[1-9][0-9]*", key) for key in ids)
    return [int(key) for key in ids] if plain and all(abs(int(key)) < 2**63 for key in ids) else ids


def number_or_date(text):
    if re.fullmatch(NUMBER, text):
        return Decimal(text)
    return datetime.fromisoformat(text)


def parse_delimited(data, delimiter, places, width, header, quoted):
    """Events by the csv module, or None where there are none that make sense."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    lines = io.StringIO(text, newline="")
    try:
        if len(delimiter) > 1:
            rows = [re.sub("[\r\n]+$", "", line).split(delimiter) for line in lines]
        elif quoted:
            rows = [*csv.reader(lines, delimiter=delimiter, strict=True)]
        else:
            rows = [*csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)]
        rows = [row for row in rows if row not in ([], [""])][header:]
        if not rows or {len(row) for row in rows} != {width}:
            return None
        users, items, times = (
            [row[place].encode("latin-1").decode() for row in rows] for place in places
        )
        keys = [number_or_date(time) for time in times]
        sorted(keys)
    except (ValueError, TypeError, csv.Error):
        return None
    if not all(users + items):
        return None
    return [*zip(typed(users), typed(items), keys, strict=True)]


def parse_lines(data, parse, keys):
    try:
        records = [
            parse(line.decode().strip("\ufeff \t\r\n")) for line in io.BytesIO(data) if line.strip()
        ]
        return [tuple(record[key] for key in keys) for record in records]
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def parse_json_or_dict(text):
    return (ast.literal_eval if text.startswith(("{'", "{u'")) else json.loads)(text)


def parse_plain(data, separator):
    lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    rows = [line.rstrip().split(separator) for line in lines]
    digits = all(re.fullmatch(rb"[0-9]+", field) for row in rows for field in row[:2])
    if not digits or {len(row) for row in rows} not in ({2}, {3}):
        return None
    times = [time.decode("latin-1") for row in rows for time in row[2:]]
    if not all(re.fullmatch(NUMBER, time) for time in times):
        return None
    keys = map(Decimal, times) if times else [None] * len(rows)
    return [(int(row[0]), int(row[1]), key) for row, key in zip(rows, keys, strict=True)]


ROWS = [(9, 30, 300), (8, 10, 250), (9, 10, 100), (9, 20, 1e6 + 0.5), (8, 40, -7)]
WHOLE = [(user, item, int(when)) for user, item, when in ROWS]
FORMATS = {
    "csv": (
        b"user,title,item,timestamp\r\n"
        + b"".join(b'%d,"a ""b"", c\n",%d,%s\n' % (u, i, str(t).encode()) for u, i, t in ROWS),
        lambda data: parse_delimited(data, ",", (0, 2, 3), 4, True, True),
    ),
    "movielens-100k": (
        b"".join(b"%d\t%d\t4\t%d\n" % row for row in WHOLE),
        lambda data: parse_delimited(data, "\t", (0, 1, 3), 4, False, False),
    ),
    "movielens-1m": (
        b"".join(b"%d::%d::4::%d\n" % row for row in WHOLE),
        lambda data: parse_delimited(data, "::", (0, 1, 3), 4, False, False),
    ),
    "movielens-csv": (
        b"userId,movieId,rating,timestamp\n" + b"".join(b"%d,%d,4.5,%d\n" % row for row in WHOLE),
        lambda data: parse_delimited(data, ",", (0, 1, 3), 4, True, True),
    ),
    "amazon-json": (
        b"".join(
            b'{"reviewerID": "A%d", "asin": "B%d", "unixReviewTime": %d}\n' % row for row in WHOLE
        ),
        lambda data: parse_lines(
            data, parse_json_or_dict, ("reviewerID", "asin", "unixReviewTime")
        ),
    ),
    "steam": (
        b"".join(
            b"{u'username': u'A%d', u'product_id': u'B%d', u'date': u'2017-12-%02d'}\n"
            % (u, i, t % 28 + 1)
            for u, i, t in WHOLE
        ),
        lambda data: parse_lines(data, parse_json_or_dict, ("username", "product_id", "date")),
    ),
}


def read_as(format_name):
    def read(path):
        _, _, events = read_source(path, format_name)
        return histories(Interactions.from_events(events))

    return read


def check_against(parse, read, path, data):
    path.write_bytes(data)

    found = read_or_refused(read, path)

    events = parse(data)
    assert found == REFUSED or (events is not None and found == sorted_histories(events))
    return found


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("format_name", FORMATS)
@given(damage=damages())
@few
def test_a_damaged_file_gives_what_a_simple_parser_finds_or_is_refused(
    tmp_path, format_name, damage
):
    content, parse = FORMATS[format_name]

    check_against(parse, read_as(format_name), tmp_path / "log", damage(content))


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("format_name", FORMATS)
def test_the_undamaged_files_are_read(tmp_path, format_name):
    content, parse = FORMATS[format_name]

    assert check_against(parse, read_as(format_name), tmp_path / "log", content) != REFUSED


@pytest.mark.parametrize("format_name", FORMATS)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
@few
def test_arbitrary_bytes_are_refused_or_events(tmp_path, format_name, data):
    _, parse = FORMATS[format_name]

    check_against(parse, read_as(format_name), tmp_path / "log", data)


TEXTS = st.text(min_size=1, max_size=6).filter(lambda text: text.isprintable()) | st.sampled_from(
    ["1", "1.0", "007", 'a"b', '"', ",", "a\nb", "\r\n", " ", "NA", "null", "-3", "#", "é"]
)


@pytest.mark.usefixtures("_in_blocks")
@given(
    rows=st.lists(
        st.tuples(TEXTS, TEXTS, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8
    ),
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
@few
def test_what_the_csv_module_writes_is_read(tmp_path, rows, delimiter, line_end):
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
        writer.writerows([("user", "item", "timestamp"), *rows])
    users, items, times = zip(*rows, strict=True)

    found = histories(Interactions.from_csv(path, delimiter=delimiter))

    assert found == sorted_histories([*zip(typed(users), typed(items), times, strict=True)])


@pytest.mark.parametrize("separator", [None, " ", ",", "::"])
@given(damage=damages(), data=st.none() | st.binary(max_size=40))
@few
def test_a_damaged_file_of_plain_lines_is_read_rightly_or_refused(
    tmp_path, separator, damage, data
):
    content = "".join((separator or " ").join(map(str, row)) + "\n" for row in ROWS).encode()

    check_against(
        lambda data: parse_plain(data, separator and separator.encode()),
        lambda path: SASRecDataSet(path, col_sep=separator).User,
        tmp_path / "log",
        damage(content) if data is None else data,
    )


def packed(kind, content):
    if kind == "gzip":
        return gzip.compress(content, mtime=0)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ml/u.data", content)
    return archive.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zip"])
@given(damage=damages())
@few
def test_a_damaged_archive_gives_all_events_or_is_refused(tmp_path, kind, damage):
    content, parse = FORMATS["movielens-100k"]
    path = tmp_path / "log"
    path.write_bytes(damage(packed(kind, content)))

    found = read_or_refused(read_as("movielens-100k"), path)

    assert found in (REFUSED, sorted_histories(parse(content)))


@given(damage=damages())
@few
def test_a_damaged_parquet_file_gives_what_arrow_reads_or_is_refused(tmp_path, damage):
    path = tmp_path / "log.parquet"
    users, items, times = zip(*WHOLE, strict=True)
    table = pa.table({"user": users, "item": [f"i{item}" for item in items], "timestamp": times})
    pa.parquet.write_table(table, path)
    path.write_bytes(damage(path.read_bytes()))

    found = read_or_refused(lambda path: histories(Interactions.from_parquet(path)), path)

    if found != REFUSED:
        rows = pa.parquet.read_table(path).to_pylist()
        assert found == sorted_histories(
            [(row["user"], row["item"], row["timestamp"]) for row in rows]
        )


@given(damage=damages())
@few
def test_a_damaged_file_of_ids_is_loaded_or_refused(tmp_path, damage):
    path = tmp_path / "ids.json"
    content = b'{"format": 1, "users": {"type": "int64", "ids": [3, 1]}, "items": {"type": "str", "ids": ["a", "b"]}}'
    path.write_bytes(damage(content))

    found = read_or_refused(load_id_maps, path)

    if found != REFUSED:
        record = json.loads(path.read_bytes())
        assert [ids.raw.tolist() for ids in found] == [
            record[key]["ids"] for key in ("users", "items")
        ]
