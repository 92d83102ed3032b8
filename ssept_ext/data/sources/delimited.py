"""Reading events from delimited text.

Arrow reads it fast, block by block. Text that cannot be read so is read again as a whole, and text that Arrow refuses
then is read line by line, to name the bad line.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

from ssept_ext.data.sources.columns import (
    Columns,
    RawEvents,
    arrow,
    encode_ids,
    is_exact,
    is_int64,
    join_ids,
    parse_ids,
    parse_times,
    time_kind,
)
from ssept_ext.data.sources.opening import bad_line

_UNIT_SEPARATOR = b"\x1f"
_REACH = 1 << 16  # bytes of a line that are looked at around a quote
_BLOCK = 1 << 24  # bytes that one thread of Arrow parses at a time; no row may be longer
_READ = 4 * _BLOCK  # bytes that are read at a time


class Delimited(NamedTuple):
    """The layout of delimited text."""

    columns: Columns
    delimiter: str = ","
    """one or more characters; fields cannot be quoted if there are several bytes"""
    names: Sequence[str] | None = None
    """of all columns; None to take them from the first line"""
    quoting: bool = True
    """whether `"` quotes a field, which may then hold delimiters and line ends"""
    integers: bool = False
    """whether ids must be integers, and times integers or dates"""

    @property
    def separator(self) -> bytes:
        return self.delimiter.encode()

    @property
    def quoted(self) -> bool:
        return self.quoting and len(self.separator) == 1


def read_delimited(stream: BinaryIO, source: str, layout: Delimited) -> RawEvents:
    """Read events from delimited text, with blank lines skipped and other columns ignored.

    Times are numbers, or dates or datetimes in ISO 8601. A ValueError names `source` and, where there is one, the
    bad line.
    """
    if not layout.delimiter or set(layout.delimiter) & set('"\r\n'):
        raise ValueError(
            f"delimiter must be neither empty, a quote nor a line end, got {layout.delimiter!r}"
        )
    # Block by block, the text is never in memory as a whole. What cannot be read so is read as a whole.
    with suppress(arrow().ArrowInvalid, ValueError):
        return _read_blocks(stream, source, layout)
    stream.seek(0)
    return _read_whole(stream.read(), source, layout)


def _read_blocks(stream: BinaryIO, source: str, layout: Delimited) -> RawEvents:
    """Read block by block; an ArrowInvalid or ValueError where a line is bad or blocks depend on one another."""
    pa = arrow()
    header: list[str] | None = None
    start = 0
    columns: list[Any] = []
    for block in _blocks(stream):
        if header is None:
            header, start = _header(block, source, layout)
        if layout.quoted and not _has_plain_quotes(block, layout):
            raise ValueError("a quoted field may hold line ends")
        table = _to_table(block, start, header, layout, across_lines=False)
        start = 0
        columns.append(_parse(table, layout))
        time = layout.columns.time
        if time and pa.types.is_floating(columns[-1][2].type) and not is_exact(table.column(time)):
            raise ValueError("a time may be the same in float64 as one of another block")
    if header is None:
        raise ValueError("no line")
    return _to_events(columns, layout)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the text, without the mark at its start, in blocks of whole lines that are not all blank."""
    rest = stream.read(len(BOM_UTF8)).removeprefix(BOM_UTF8)
    while text := stream.read(_READ):
        text = rest + text
        end = 1 + max(text.rfind(b"\n"), text.rfind(b"\r"))
        block, rest = text[:end], text[end:]
        if block and not block.isspace():
            yield block
    if rest and not rest.isspace():
        yield rest


def _has_plain_quotes(text: bytes, layout: Delimited) -> bool:
    """Whether each quote opens a field that a quote in the same line closes, or closes it."""
    edges = re.escape(b"\r\n" + layout.separator)
    # The quote first, because the search for it is several times as fast as for what is before it.
    plain = rb'"(?:(?<=[%b]")|(?<=\A"))[^"\r\n]*"(?=[%b]|\Z)' % (edges, edges)
    return b'"' not in text or 2 * len(re.findall(plain, text)) == text.count(b'"')


def _read_whole(data: bytes, source: str, layout: Delimited) -> RawEvents:
    data = data.removeprefix(BOM_UTF8)
    if not data.strip():
        raise ValueError(f"{source} is empty")
    header, start = _header(data, source, layout)
    across_lines = layout.quoted and _check_quotes(data, source, layout, header, start)
    try:
        table = _to_table(data, start, header, layout, across_lines)
        return _to_events([_parse(table, layout)], layout)
    except (arrow().ArrowInvalid, ValueError) as error:
        _raise_for_first_bad_line(data, start, header, source, layout)
        raise ValueError(f"{source}: {error}") from error


def _to_table(
    data: bytes, start: int, header: list[str], layout: Delimited, across_lines: bool
) -> Any:
    """Split the text behind `start` into an Arrow table of texts."""
    pa = arrow()
    separator = layout.separator
    if len(separator) > 1:  # Arrow takes one character only
        separator = _UNIT_SEPARATOR
        if separator in data:
            raise ValueError(f"it holds the character {separator.decode()!r}")
        data, start = data[start:].replace(layout.separator, separator), 0
    wanted = layout.columns.among(header, "it")
    return pa.csv.read_csv(
        pa.BufferReader(pa.py_buffer(data)[start:]),
        pa.csv.ReadOptions(column_names=header, block_size=_BLOCK),
        pa.csv.ParseOptions(
            delimiter=separator.decode(),
            quote_char='"' if layout.quoted else False,
            newlines_in_values=across_lines,
        ),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, null_values=[]
        ),
    )


def _parse(table: Any, layout: Delimited) -> list[Any]:
    """Convert the columns of users, items and, if there are any, times from texts."""
    user, item, time = layout.columns
    ids = [parse_ids(table.column(name)) for name in (user, item)]
    return ids if time is None else [*ids, parse_times(table.column(time))]


def _to_events(parts: list[list[Any]], layout: Delimited) -> RawEvents:
    """Encode what `_parse` returned for the parts of a file, which are forgotten one column after the other."""
    pa = arrow()
    users, items, *times = (list(column) for column in zip(*parts, strict=True))
    parts.clear()
    if len({part.type for column in times for part in column}) > 1:
        raise ValueError("the times of blocks are of several kinds")
    numbers = pa.chunked_array(times.pop()).to_numpy() if times else None
    columns = [join_ids(users), join_ids(items)]
    users.clear()
    items.clear()
    wrong_time = numbers is not None and numbers.dtype.kind == "f"
    if layout.integers and (wrong_time or any(column.type != pa.int64() for column in columns)):
        raise ValueError("ids must be integers, and times integers or dates")
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(encode_ids, columns, layout.columns[:2])
        columns.clear()
        user_codes, item_codes = encoded
    return RawEvents(user_codes, item_codes, numbers)


def rows(
    data: bytes, layout: Delimited, start: int = 0, number: int = 1
) -> Iterator[tuple[int, slice, list[bytes]]]:
    """Yield the number of the first line, the place and the fields of every row that is not blank."""
    separator = re.escape(layout.separator)
    field = b"(?:(?!" + separator + rb")[^\r\n])*"
    if layout.quoted:
        field = b'"[^"]*(?:""[^"]*)*"|(?!")' + field
    pattern = re.compile(b"(" + field + b")(" + separator + rb"|\r\n|[\r\n]|\Z)")
    fields: list[bytes] = []
    at = start
    while at < len(data) or fields:
        match = pattern.match(data, at)
        if match is None:  # an open quote, or text behind a closed one
            return
        at = match.end()
        text = match[1]
        if layout.quoted and text.startswith(b'"'):
            text = text[1:-1].replace(b'""', b'"')
        fields.append(text)
        if match[2] != layout.separator:
            if match.end(1) > start:
                yield number, slice(start, at), fields
            number += _count_lines(data[start:at])
            start, fields = at, []


def _count_lines(text: bytes) -> int:
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


def _header(data: bytes, source: str, layout: Delimited) -> tuple[list[str], int]:
    """Return the names of the columns and where the text behind them starts."""
    if layout.names:
        return list(layout.names), 0
    for _, place, fields in rows(data, layout):
        header = [field.decode(errors="replace") for field in fields]
        if any(map(_count_lines, fields)):
            break
        layout.columns.among(header, source)
        if not data[place.stop :].strip():
            raise ValueError(f"{source}: it holds no events")
        return header, place.stop
    raise bad_line(source, 1, "a quote is not closed in the line of the header", data.lstrip())


def _check_quotes(
    data: bytes, source: str, layout: Delimited, header: list[str], start: int
) -> bool:
    """Check that every quoted field is closed where it should be, and return whether one holds line ends.

    Arrow takes an open quote for a field that goes on to the next quote, however many events lie in between.
    """
    edges = b"\r\n" + layout.separator
    if _has_plain_quotes(data, layout):
        return False
    across_lines = False
    at = start
    while (at := data.find(b'"', at)) >= 0:
        if at > 0 and data[at - 1] not in edges:  # in the middle of a field: text
            at += 1
            continue
        end = at + 1
        while (end := data.find(b'"', end)) >= 0 and data[end + 1 : end + 2] == b'"':
            end += 2
        reason = None
        if end < 0:
            reason = "a quote opens a field and is not closed"
        elif end + 1 < len(data) and data[end + 1] not in edges:
            reason = "a quoted field is followed by text"
        elif _count_lines(data[at:end]):
            across_lines = True
            if _swallows_events(data, _line_start(data, at), end, layout, header):
                reason = "a quoted field ends in another line, and without quoting all these lines are events"
        if reason is not None:
            line = data[_line_start(data, at) : at + _REACH].splitlines()[0]
            reason += " (quoting=False or --no-quoting takes quotes as text)"
            raise bad_line(source, 1 + _count_lines(data[:at]), reason, line)
        at = end + 1
    return across_lines


def _swallows_events(
    data: bytes, start: int, end: int, layout: Delimited, header: list[str]
) -> bool:
    """Whether the lines from `start` to that of `end` are all events if quotes are text."""
    places = [header.index(name) for name in layout.columns if name is not None]
    stop = re.compile(rb"[\r\n]|\Z").search(data, end)
    lines = data[start : stop.start() if stop else end].splitlines()
    for fields in (line.split(layout.separator) for line in reversed(lines) if line):
        if len(fields) != len(header):
            return False
        user, item, *times = (fields[place].decode(errors="replace") for place in places)
        prose = any(field != field.strip(' "') for field in (user, item))
        if None in map(time_kind, times) or (not times and prose):
            return False
    return True


def _line_start(data: bytes, at: int) -> int:
    near = max(0, at - _REACH)
    near = max(near, data.rfind(b"\n", near, at) + 1)
    return max(near, data.rfind(b"\r", near, at) + 1)


def _raise_for_first_bad_line(
    data: bytes, start: int, header: list[str], source: str, layout: Delimited
) -> None:
    """Read line by line what Arrow refused, and raise for the first bad line; return if there is none."""
    places = [header.index(name) for name in layout.columns if name is not None]
    first_kind = unlike = None
    for number, place, row in rows(data, layout, start, 1 + _count_lines(data[:start])):

        def bad(reason: str, number: int = number, place: slice = place) -> ValueError:
            return bad_line(source, number, reason, data[place])

        if len(row) != len(header):
            raise bad(f"{len(header)} columns expected, got {len(row)}")
        try:
            user, item, *times = (row[place].decode() for place in places)
        except UnicodeDecodeError as error:
            raise bad(str(error)) from None
        for name, field in zip(layout.columns[:2], (user, item), strict=True):
            if not field:
                raise bad(f"{name} is missing")
            if layout.integers and not is_int64(field):
                raise bad(f"{name} must be an integer")
        for time in times:
            kind = time_kind(time)
            if kind is None or (layout.integers and kind == "a number"):
                wanted = "an integer" if layout.integers else "a number"
                raise bad(f"{layout.columns.time} must be {wanted} or an ISO 8601 date")
            first_kind = first_kind or kind
            if "date" in kind + first_kind and kind != first_kind:
                unlike = unlike or bad(
                    f"{layout.columns.time} is {kind} after lines where it is {first_kind}"
                )
    if unlike is not None:
        raise unlike
