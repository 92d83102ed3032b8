"""Reading events from delimited text.

Arrow reads it fast. A file that Arrow refuses is read again line by line, to name the bad line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

from ssept_ext.data.sources.columns import Codes, Columns, RawEvents, arrow, encode_ids, take_times
from ssept_ext.data.sources.opening import Opener, bad_line, named_damage

_UNIT_SEPARATOR = b"\x1f"


_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"  # 007 is a string: its zeros would be lost


class Delimited(NamedTuple):
    """The layout of delimited text."""

    columns: Columns
    delimiter: str = ","
    """one or more characters; fields cannot be quoted if there are several"""
    names: Sequence[str] | None = None
    """of all columns; None to take them from the first line"""
    quoted: bool = True
    """whether `"` quotes a field, which may then hold delimiters and line ends"""
    integers: bool = False
    """whether ids and times must be integers"""


def read_delimited(opened: Opener, source: str, layout: Delimited) -> RawEvents:
    """Read events from delimited text, with blank lines skipped and other columns ignored.

    Ids are int64 if the whole column consists of integers without leading zeros or signs of plus, and
    strings otherwise, so `007` keeps its zeros. Times are numbers, or dates or datetimes in ISO 8601.

    Parameters
    ----------
    opened
        Opens the file.
    source
        Name of the file in error messages.
    layout
        How to read it.

    Raises
    ------
    ValueError
        If the file is empty or damaged, a column is missing, or a line is not an event; names source,
        line number and text.
    """
    pa = arrow()
    with named_damage(source):
        header = list(layout.names or _read_header(opened, source, layout))
        try:
            return _read_with_arrow(opened, layout)
        except (pa.ArrowInvalid, TypeError, ValueError) as error:
            _raise_for_first_bad_line(opened, source, layout, header)
            raise ValueError(f"{source}: {error}") from error


def _read_with_arrow(opened: Opener, layout: Delimited) -> RawEvents:
    pa = arrow()
    user, item, time = layout.columns
    types = dict.fromkeys((user, item), pa.dictionary(pa.int32(), pa.string()))
    if layout.integers and time is not None:
        types[time] = pa.int64()
    several = len(layout.delimiter) > 1
    with opened() as stream:
        if several:  # Arrow takes one character only
            text = stream.read().replace(layout.delimiter.encode(), _UNIT_SEPARATOR)
            stream = io.BytesIO(text)
        table = pa.csv.read_csv(
            stream,
            pa.csv.ReadOptions(column_names=layout.names),
            pa.csv.ParseOptions(
                delimiter=_UNIT_SEPARATOR.decode() if several else layout.delimiter,
                quote_char='"' if layout.quoted and not several else False,
                newlines_in_values=layout.quoted and not several,
            ),
            pa.csv.ConvertOptions(
                column_types=types,
                include_columns=[name for name in layout.columns if name is not None],
                null_values=[""],
            ),
        )
    if not len(table):
        raise ValueError("it holds no events")
    return RawEvents(
        _plain_ids(table.column(user), user, layout.integers),
        _plain_ids(table.column(item), item, layout.integers),
        None if time is None else take_times(table.column(time), time),
    )


def _plain_ids(column: Any, name: str, integers: bool) -> Codes:
    """Convert a column of text to ids, int64 if all are integers."""
    pa = arrow()
    column = column.unify_dictionaries()
    codes, ids = encode_ids(column, name)
    text = pa.array(ids, pa.string())
    if pa.compute.any(pa.compute.equal(text, "")).as_py():
        raise ValueError(f"column {name!r} has an id that is missing")
    if pa.compute.all(pa.compute.match_substring_regex(text, _INTEGER)).as_py():
        try:
            return Codes(codes, text.cast(pa.int64()).to_numpy())
        except pa.ArrowInvalid:  # beyond int64: a hash, which is a name
            pass
    if integers:
        raise ValueError(f"column {name!r} has an id that is no integer")
    return Codes(codes, ids)


def _rows(
    stream: BinaryIO, source: str, layout: Delimited
) -> Iterator[tuple[int, bytes, list[str]]]:
    """Yield the number of the first line, the text and the fields of every row that is not blank."""
    read: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in stream:
            read.append(line)
            yield line.decode("utf-8-sig" if first == len(read) == 1 else "utf-8")

    first = 1
    rows: Iterator[list[str]]
    if len(layout.delimiter) > 1:
        bare = (line.rstrip("\r\n") for line in lines())
        rows = (line.split(layout.delimiter) if line else [] for line in bare)
    else:
        quoting: dict[str, Any] = {} if layout.quoted else {"quoting": csv.QUOTE_NONE}
        rows = csv.reader(lines(), delimiter=layout.delimiter, **quoting)
    while True:
        try:
            fields = next(rows, None)
        except (UnicodeDecodeError, csv.Error) as error:
            raise bad_line(source, first + len(read) - 1, str(error), read[-1]) from None
        if fields is None:
            return
        if fields:
            yield first, b"".join(read), fields
        first += len(read)
        read.clear()


def _read_header(opened: Opener, source: str, layout: Delimited) -> list[str]:
    with opened() as stream:
        for _, _, header in _rows(stream, source, layout):
            for name in layout.columns:
                if name is not None and header.count(name) != 1:
                    times = f"{header.count(name)} columns" if name in header else "no column"
                    raise ValueError(f"{source} has {times} {name!r} among {header}")
            return header
    raise ValueError(f"{source} is empty")


def _raise_for_first_bad_line(
    opened: Opener, source: str, layout: Delimited, header: list[str]
) -> None:
    """Read line by line what Arrow refused, and raise for the first bad line; return if there is none."""
    place = [header.index(name) for name in layout.columns if name is not None]
    time_kind = unlike = None
    with opened() as stream:
        rows = _rows(stream, source, layout)
        if layout.names is None:
            next(rows)
        for number, text, fields in rows:
            if len(fields) != len(header):
                reason = f"{len(header)} columns expected, got {len(fields)}"
                raise bad_line(source, number, reason, text)
            user, item, *time = (fields[at] for at in place)
            for name, field in ((layout.columns.user, user), (layout.columns.item, item)):
                if not field:
                    raise bad_line(source, number, f"{name} is missing", text)
                if layout.integers and _kind(field) != "an integer":
                    raise bad_line(source, number, f"{name} must be an integer", text)
            for field in time:
                kind = _kind(field)
                if kind is None or (layout.integers and kind != "an integer"):
                    wanted = "an integer" if layout.integers else "a number or an ISO 8601 date"
                    reason = f"{layout.columns.time} must be {wanted}"
                    raise bad_line(source, number, reason, text)
                time_kind = time_kind or kind
                if kind != time_kind and unlike is None:
                    reason = f"{layout.columns.time} is {kind} after lines where it is {time_kind}"
                    unlike = bad_line(source, number, reason, text)
    if unlike is not None:
        raise unlike


def _kind(field: str) -> str | None:
    try:
        return "an integer" if -(2**63) <= int(field) < 2**63 else None
    except ValueError:
        pass
    try:
        return "a number" if math.isfinite(float(field)) else None
    except ValueError:
        pass
    try:
        datetime.fromisoformat(field.replace("Z", "+00:00"))
    except ValueError:
        return None
    return "a date"
