"""The layouts of published data sets, and how a file's layout is detected."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from datetime import date
from typing import Any, NamedTuple

from ssept_ext.data.sources.columns import Columns, RawEvents
from ssept_ext.data.sources.delimited import Delimited, read_delimited, rows
from ssept_ext.data.sources.opening import open_events
from ssept_ext.data.sources.records import parse_record, read_records
from ssept_ext.utils.checks import shown


class Records(NamedTuple):
    """Lines that are JSON objects or Python dicts."""

    keys: tuple[str, str, str]
    """of user, item and time"""
    parse_time: Callable[[Any], int]


def _unix_time(value: object) -> int:
    if not (type(value) is int and -(2**63) <= value < 2**63):
        raise ValueError(f"time must be an integer of 64 bits, got {shown(value)}")
    return value


def _day(value: str) -> int:
    return date.fromisoformat(value).toordinal()


_USER_FIRST = ("user", "item", "rating", "time")
_ITEM_FIRST = ("item", "user", "rating", "time")
_COLUMNS = Columns("user", "item", "time")

FORMATS: dict[str, Delimited | Records] = {
    "movielens-100k": Delimited(_COLUMNS, "\t", _USER_FIRST, quoting=False, integers=True),
    "movielens-1m": Delimited(_COLUMNS, "::", _USER_FIRST, integers=True),
    "movielens-csv": Delimited(Columns("userId", "movieId", "timestamp"), integers=True),
    "amazon-json": Records(("reviewerID", "asin", "unixReviewTime"), _unix_time),
    "amazon-2023-json": Records(("user_id", "parent_asin", "timestamp"), _unix_time),
    "amazon-2014-csv": Delimited(_COLUMNS, names=_USER_FIRST, quoting=False),
    "amazon-2018-csv": Delimited(_COLUMNS, names=_ITEM_FIRST, quoting=False),
    "amazon-2023-csv": Delimited(Columns("user_id", "parent_asin", "timestamp")),
    "steam": Records(("username", "product_id", "date"), _day),
}
"""Known layouts.

movielens-100k: `u.data`. movielens-1m: `ratings.dat`, of 10M too. movielens-csv: `ratings.csv` of 20M,
25M, 32M and the latest ones. amazon-json: reviews of 2014 and 2018. amazon-2014-csv, amazon-2018-csv:
"ratings only", user or item first. amazon-2023-csv: "pure ids", 0-core and 5-core. steam:
`steam_reviews.json.gz` of UCSD, lines of Python dicts.
"""

_SHAPES = {
    "movielens-100k": re.compile(r"[0-9]+\t[0-9]+\t[0-9]+\t[0-9]+"),
    "movielens-1m": re.compile(r"[0-9]+::[0-9]+::[0-9.]+::[0-9]+"),
    # An ASIN has 10 characters, and is an ISBN or begins with B; a user has more, and begins with A.
    "amazon-2014-csv": re.compile(r"A[0-9A-Z]{10,},([0-9]{9}[0-9X]|B[0-9A-Z]{9}),[0-9.]+,[0-9]+"),
    "amazon-2018-csv": re.compile(r"([0-9]{9}[0-9X]|B[0-9A-Z]{9}),A[0-9A-Z]{10,},[0-9.]+,[0-9]+"),
}
"""A first line of each layout without a header."""


def read_source(
    path: str | os.PathLike[str],
    format_name: str | None = None,
    columns: Columns | None = None,
    *,
    quoting: bool = True,
) -> tuple[str, str, RawEvents]:
    """Read events from a file, a folder or a zip archive, which is not unpacked.

    `format_name` is a key of `FORMATS` or "csv", detected from the first line if None; `columns` are those of a generic
    CSV file; `quoting=False` takes quotes as text in every format. Returns the names of the file and its format, and
    the events. A ValueError names the file and, where there is one, the bad line.
    """
    columns = columns or Columns("user", "item", "timestamp")
    with open_events(path, archives=True) as (source, stream):
        first_line = next((line for line in stream if not line.isspace()), b"")
        if not first_line:
            raise ValueError(f"{source} is empty")
        stream.seek(0)
        format_name = format_name or _detect(source, first_line, columns)
        layout = FORMATS.get(format_name) or Delimited(
            columns, _delimiter(first_line, columns) or ","
        )
        if isinstance(layout, Records):
            return source, format_name, read_records(stream, source, *layout)
        layout = layout._replace(quoting=layout.quoting and quoting)
        return source, format_name, read_delimited(stream, source, layout)


def _detect(source: str, first_line: bytes, columns: Columns) -> str:
    text = first_line.decode("utf-8-sig", errors="replace").strip()
    for name, shape in _SHAPES.items():
        if shape.fullmatch(text):
            return name
    try:
        fields = set(parse_record(first_line)) if text.startswith("{") else _split(first_line, ",")
    except ValueError:
        fields = set()
    for name, layout in FORMATS.items():
        if isinstance(layout, Records) == text.startswith("{"):
            wanted = layout.keys if isinstance(layout, Records) else layout.columns
            if set(wanted) <= fields and name not in _SHAPES:
                return name
    if _delimiter(first_line, columns) is not None:
        return "csv"
    named = ", ".join(repr(name) for name in columns if name is not None)
    raise ValueError(
        f"{source} is of no known format, and its first line does not name the columns {named}; see "
        f"--format and --user-col: {shown(text)}"
    )


def _delimiter(header: bytes, columns: Columns) -> str | None:
    """What separates the columns in a header that has them all; None if nothing does."""
    wanted = {name for name in columns if name is not None}
    return next((sign for sign in ",\t;| " if wanted <= _split(header, sign)), None)


def _split(header: bytes, delimiter: str) -> set[str]:
    line = header.removeprefix(BOM_UTF8).strip()
    layout = Delimited(_COLUMNS, delimiter)
    _, _, fields = next(rows(line, layout), (0, 0, []))
    return {field.decode(errors="replace") for field in fields}
