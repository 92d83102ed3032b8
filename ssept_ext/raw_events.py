"""Columns of raw events, out of tables of Arrow, delimited text and lines of records.

Every reader gives `RawEvents`: ids as positions in a list of distinct ids, so that memory grows by
16 to 24 bytes an event. Text is read by Arrow, fast; what Arrow refuses, and what it lets pass but
is no event, is looked for again line by line, so that the error names the line.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import math
import os
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast
from uuid import UUID
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data import IntArray
from ssept_ext.optional import require

SHOWN_CHARACTERS = 200
_UNIT_SEPARATOR = b"\x1f"
_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"  # 007 is a string: its zeros would be lost

Opener: TypeAlias = Callable[[], BinaryIO]
"""Opens a file, uncompressed, from its beginning: again where it has to be searched for an error."""


class Codes(NamedTuple):
    """A column of ids: event e has `ids[codes[e]]`. `ids` are in the order of first appearance."""

    codes: IntArray
    """(E,)"""
    ids: NDArray[Any]
    """(n,) int64, or object holding str or UUID"""


class RawEvents(NamedTuple):
    """Events in the order of their source."""

    users: Codes
    items: Codes
    times: NDArray[Any] | None
    """(E,) int64, float64 or datetime64, finite; None where the order of events is that of time"""


class Columns(NamedTuple):
    """Names of the columns, or keys, that hold user, item and time."""

    user: str
    item: str
    time: str | None


class Delimited(NamedTuple):
    """The layout of delimited text."""

    columns: Columns
    delimiter: str = ","
    """one character, or several, which then cannot be quoted"""
    names: Sequence[str] | None = None
    """of all columns; None to take them from the first line"""
    quoted: bool = True
    """whether `"` quotes a field, which may then hold delimiters and line ends"""
    integers: bool = False
    """whether ids and times must be integers"""


def arrow() -> Any:
    """PyArrow, with those of its modules that are used here."""
    for module in ("pyarrow.compute", "pyarrow.csv", "pyarrow.parquet"):
        require(module, "data")
    return require("pyarrow", "data")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file at its beginning; one compressed with gzip, whatever its name, is read uncompressed."""
    with Path(path).open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if compressed else Path(path).open("rb")


@contextmanager
def named_damage(source: str) -> Iterator[None]:
    """Turn what broken gzip and zip files raise into a ValueError that names the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, BadZipFile) as error:
        raise ValueError(f"{source} is damaged: {error}") from error


def encode_ids(column: Any, name: str) -> Codes:
    """Take the ids of an Arrow column: integers, strings, categories of these, or UUIDs (16 bytes).

    Raises
    ------
    TypeError : a column of neither integers, strings nor UUIDs; names it.
    ValueError : a missing id, or one beyond int64; names column and row, counted from 0.
    """
    pa = arrow()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    _refuse_nulls(column, name, "id")
    categorical = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if categorical else column.type
    is_uuid, is_integer = kind == pa.binary(16), pa.types.is_integer(kind)
    if not (is_uuid or is_integer or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise TypeError(f"column {name!r} holds {kind}: ids must be integers, strings or UUIDs")
    if categorical:
        # Again, because categories are in any order, and not all of them used.
        encoded = column.indices.dictionary_encode()
        values = column.dictionary.take(encoded.dictionary)
    else:
        encoded = column.dictionary_encode()
        values = encoded.dictionary
    codes: IntArray = encoded.indices.to_numpy().astype(np.int64)
    if is_uuid:
        return Codes(codes, _objects([UUID(bytes=key) for key in values.to_pylist()]))
    if not is_integer:
        return Codes(codes, _objects(values.to_pylist()))
    try:
        return Codes(codes, values.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        largest = pa.compute.max(values).as_py()
        raise ValueError(f"column {name!r}: id {largest} is beyond int64") from None


def take_times(column: Any, name: str) -> NDArray[Any]:
    """Take the times of an Arrow column: int64, float64 or datetime64.

    Raises
    ------
    TypeError : a column of neither numbers, dates nor datetimes; names it.
    ValueError : a missing, NaN or infinite time; names column and row, counted from 0.
    """
    pa = arrow()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _refuse_nulls(column, name, "time")
    kind = column.type
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {name!r}: a time is beyond int64: {error}") from None
    if pa.types.is_floating(kind):
        times: NDArray[Any] = column.cast(pa.float64()).to_numpy()
        if not np.isfinite(times).all():
            row = int(np.flatnonzero(~np.isfinite(times))[0])
            raise ValueError(f"column {name!r}, row {row}: time must be finite, got {times[row]}")
        return times
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    example = f", as {column[0].as_py()!r}" if len(column) else ""
    raise TypeError(
        f"column {name!r} holds {kind}{example}: times must be numbers, dates or datetimes"
    )


def read_delimited(opened: Opener, source: str, layout: Delimited) -> RawEvents:
    """Read events from delimited text, with blank lines skipped and other columns ignored.

    Ids are int64 if every one of a column is an integer written plainly, strings otherwise: `007`
    keeps its zeros. Times are numbers, or dates or datetimes as in ISO 8601.

    Parameters
    ----------
    opened : opens the file.
    source : its name in errors.

    Raises
    ------
    ValueError : an empty or damaged file; a missing column; a line that is no event, with source,
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


def read_records(
    opened: Opener, source: str, keys: tuple[str, str, str], parse_time: Callable[[Any], int]
) -> RawEvents:
    """Read events from lines that are JSON objects, or Python dicts as in the files of UCSD.

    Parameters
    ----------
    opened : opens the file.
    source : its name in errors.
    keys : of the user and the item, whose values are strings, and of the time.
    parse_time : from the value to an integer of 64 bits; raises ValueError or TypeError for no time.

    Raises
    ------
    ValueError : an empty file; a line that is no event, with source, line number and text.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns = array("q"), array("q"), array("q")
    with named_damage(source), opened() as stream:
        for number, line in enumerate(stream, 1):
            if line.isspace():
                continue
            try:
                record = parse_record(line)
                user, item, time = (record[key] for key in keys)
                if not (user and item and isinstance(user, str) and isinstance(item, str)):
                    raise ValueError(f"{keys[0]} and {keys[1]} must be strings that are not empty")
                columns[2].append(parse_time(time))
            except KeyError as error:
                raise bad_line(source, number, f"{error.args[0]} is missing", line) from None
            except (ValueError, TypeError) as error:
                raise bad_line(source, number, str(error), line) from None
            columns[0].append(users.setdefault(user, len(users)))
            columns[1].append(items.setdefault(item, len(items)))
    if not users:
        raise ValueError(f"{source} is empty")
    user_codes, item_codes, times = (np.frombuffer(column, np.int64) for column in columns)
    return RawEvents(
        Codes(user_codes, _objects(list(users))), Codes(item_codes, _objects(list(items))), times
    )


def parse_record(line: bytes) -> dict[str, Any]:
    """A JSON object or, as some files of UCSD have it, a Python dict; nothing is executed."""
    text = line.decode().strip("\ufeff \t\r\n")
    parse = ast.literal_eval if text.startswith(("{'", "{u'")) else json.loads
    try:
        record = parse(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError("neither a JSON object nor a Python dict")
    return record


def bad_line(source: str, number: int, reason: str, line: bytes) -> ValueError:
    """The error that names a line, counted from 1."""
    text = line.decode(errors="replace").rstrip("\r\n")
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return ValueError(f"{source}, line {number}: {reason}: {shown!r}")


def _refuse_nulls(column: Any, name: str, what: str) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(
            f"column {name!r}, row {row}: {what} is missing, got {column[row].as_py()}"
        )


def _objects(values: list[Any]) -> NDArray[Any]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _plain_ids(column: Any, name: str, integers: bool) -> Codes:
    """The ids of a column of text: int64 if all are integers."""
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
    """(number of its first line, text, fields) of every row that is not blank."""
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
    """Read line by line what the fast reader could not; returns if every line is good by itself."""
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
