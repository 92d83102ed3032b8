"""`ssept prepare`: from the files that data sets come in to what `SASRecDataSet` reads."""

from __future__ import annotations

import argparse
import csv
import os
import re
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast, get_args

from ssept_ext.download import MOVIELENS_MD5, download
from ssept_ext.files import replace_file
from ssept_ext.id_map import save_id_maps
from ssept_ext.interactions import Duplicates, Interactions
from ssept_ext.raw_events import (
    Columns,
    Delimited,
    Opener,
    RawEvents,
    arrow,
    named_damage,
    open_file,
    parse_record,
    read_delimited,
    read_records,
)

EVENT_FILES = ("u.data", "ratings.dat", "ratings.csv")
"""How MovieLens names its events, in folders and archives with other files."""

IDS_SUFFIX = ".ids.json"
"""What the file of raw ids is called, after the file that it belongs to."""


class Records(NamedTuple):
    """Lines that are JSON objects or Python dicts."""

    keys: tuple[str, str, str]
    """of user, item and time"""
    parse_time: Callable[[Any], int]


def _unix_time(value: object) -> int:
    if not (type(value) is int and -(2**63) <= value < 2**63):
        raise ValueError(f"time must be an integer of 64 bits, got {value!r}")
    return value


def _day(value: str) -> int:
    return date.fromisoformat(value).toordinal()


_USER_FIRST = ("user", "item", "rating", "time")
_ITEM_FIRST = ("item", "user", "rating", "time")
_COLUMNS = Columns("user", "item", "time")

FORMATS: dict[str, Delimited | Records] = {
    "movielens-100k": Delimited(_COLUMNS, "\t", _USER_FIRST, quoted=False, integers=True),
    "movielens-1m": Delimited(_COLUMNS, "::", _USER_FIRST, integers=True),
    "movielens-csv": Delimited(Columns("userId", "movieId", "timestamp"), integers=True),
    "amazon-json": Records(("reviewerID", "asin", "unixReviewTime"), _unix_time),
    "amazon-2023-json": Records(("user_id", "parent_asin", "timestamp"), _unix_time),
    "amazon-2014-csv": Delimited(_COLUMNS, names=_USER_FIRST, quoted=False),
    "amazon-2018-csv": Delimited(_COLUMNS, names=_ITEM_FIRST, quoted=False),
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
    "movielens-100k": re.compile(r"\d+\t\d+\t\d+\t\d+"),
    "movielens-1m": re.compile(r"\d+::\d+::[\d.]+::\d+"),
    # An ASIN has 10 characters, and is an ISBN or begins with B; a user has more, and begins with A.
    "amazon-2014-csv": re.compile(r"A[0-9A-Z]{10,},(\d{9}[\dX]|B[0-9A-Z]{9}),[\d.]+,\d+"),
    "amazon-2018-csv": re.compile(r"(\d{9}[\dX]|B[0-9A-Z]{9}),A[0-9A-Z]{10,},[\d.]+,\d+"),
}
"""A first line of each layout without a header."""


def run(options: argparse.Namespace) -> int:
    """Turn a data set as it is published, or a CSV file, into a file for --data."""
    out, ids = Path(options.out), Path(f"{options.out}{IDS_SUFFIX}")
    for path in (out, ids):
        if path.exists():
            raise ValueError(f"{path} exists: remove it first, or choose another --out")
    if (options.source is None) == (options.download is None):
        raise ValueError("give either SOURCE or --download, and not both")
    source = options.source or download(options.download, options.cache)
    columns = Columns(options.user_col, options.item_col, options.time_col or None)
    name, format_name, events = read_source(source, options.format, columns)
    print(
        f"read   {name} ({format_name}): {len(events.users.codes):,} events, "
        f"{len(events.users.ids):,} users, {len(events.items.ids):,} items"
    )
    interactions = Interactions.from_events(
        events, options.duplicates, options.min_user_events, options.min_item_events
    )
    print(
        f"kept   {len(interactions):,} events, {len(interactions.user_ids):,} users, "
        f"{len(interactions.item_ids):,} items"
    )
    save_id_maps(ids, interactions.user_ids, interactions.item_ids)
    write_events(interactions, out)
    print(f"wrote  {out}, and the raw ids to {ids}")
    return 0


def read_source(
    path: str | os.PathLike[str], format_name: str | None = None, columns: Columns | None = None
) -> tuple[str, str, RawEvents]:
    """Read events from a file, from a folder, or from a zip archive without unpacking it.

    Parameters
    ----------
    path : a file, plain or compressed with gzip; or a folder or archive that holds one file, or
        one named as in `EVENT_FILES`.
    format_name : a key of `FORMATS`, or "csv"; None to tell it by the first line.
    columns : of a generic CSV file, "user", "item" and "timestamp" by default.

    Returns
    -------
    (name of the file, name of its format, events)

    Raises
    ------
    ValueError : no file of events, or several; an unknown layout; a line that is no event, with
        file, line number and text.
    ImportError : PyArrow is missing: it comes with `ssept_ext[data]`.
    """
    columns = columns or Columns("user", "item", "timestamp")
    source, opened = _find_events(Path(path))
    with named_damage(source), opened() as stream:
        first_line = next((line for line in stream if not line.isspace()), b"")
    if not first_line:
        raise ValueError(f"{source} is empty")
    format_name = format_name or _detect(source, first_line, columns)
    layout = FORMATS.get(format_name) or Delimited(columns, _delimiter(first_line, columns) or ",")
    if isinstance(layout, Records):
        return source, format_name, read_records(opened, source, *layout)
    return source, format_name, read_delimited(opened, source, layout)


def write_events(interactions: Interactions, path: Path) -> None:
    """Write lines `user item`, compressed if the name ends in .gz, replacing `path` in one step."""
    pa = arrow()
    table = pa.table({"user": interactions.users, "item": interactions.items})
    options = pa.csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    compression = "gzip" if path.suffix == ".gz" else None

    def write(part: Path) -> None:
        with pa.output_stream(str(part), compression=compression) as stream:
            pa.csv.write_csv(table, stream, options)

    replace_file(path, write)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a file of events, plain or .gz, or a folder or zip archive that holds it",
    )
    add(
        "--download",
        choices=list(MOVIELENS_MD5),
        help="fetch this data set of MovieLens, whose terms of use are in the archive (default: read SOURCE)",
    )
    add("--cache", metavar="DIR", help="where downloads are kept (default: the user's cache)")
    add(
        "--out", required=True, metavar="FILE", help="the file to write, .gz to compress (required)"
    )
    add(
        "--format",
        choices=[*FORMATS, "csv"],
        help="the layout of SOURCE (default: told by its first line)",
    )
    add("--user-col", default="user", metavar="NAME", help="the users' column in a generic CSV")
    add("--item-col", default="item", metavar="NAME", help="the items' column")
    add(
        "--time-col",
        default="timestamp",
        metavar="NAME",
        help="the times' column; an empty name if lines are in the order of time",
    )
    add(
        "--duplicates",
        choices=get_args(Duplicates),
        default="keep",
        help="which events of the same user and item stay: all, one, or one of a run",
    )
    for noun in ("user", "item"):
        add(
            f"--min-{noun}-events",
            type=int,
            default=5,
            metavar="N",
            help=f"drop {noun}s with fewer events, until all have enough",
        )


def _find_events(path: Path) -> tuple[str, Opener]:
    """(name, opener) of the file of events that `path` is or holds."""
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        file = path / _choose(path, names)
        return str(file), lambda: open_file(file)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
        name = _choose(path, names)
        return f"{path}/{name}", lambda: cast(BinaryIO, zipfile.ZipFile(path).open(name))
    return str(path), lambda: open_file(path)


def _choose(path: Path, names: list[str]) -> str:
    found = [name for name in names if Path(name).name in EVENT_FILES] or names
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} files that may be the events, and must hold one, or one of "
            f"{', '.join(EVENT_FILES)}: {', '.join(found[:5])}"
        )
    return found[0]


def _detect(source: str, first_line: bytes, columns: Columns) -> str:
    text = first_line.decode("utf-8-sig", errors="replace").strip()
    for name, shape in _SHAPES.items():
        if shape.fullmatch(text):
            return name
    try:
        fields = set(parse_record(first_line) if text.startswith("{") else _split(text, ","))
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
        f"--format and --user-col: {text[:200]!r}"
    )


def _delimiter(header: bytes, columns: Columns) -> str | None:
    """What separates the columns in a header that has them all; None if nothing does."""
    text = header.decode("utf-8-sig", errors="replace").strip()
    wanted = {name for name in columns if name is not None}
    return next((sign for sign in ",\t;| " if wanted <= set(_split(text, sign))), None)


def _split(text: str, delimiter: str) -> list[str]:
    return next(csv.reader([text], delimiter=delimiter), [])
