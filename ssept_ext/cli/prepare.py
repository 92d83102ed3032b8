"""The command `ssept prepare`: converts a published data set to a file for `--data`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from ssept_ext.cli.options import number, output_file
from ssept_ext.data.cleaning import Duplicates
from ssept_ext.data.id_map import save_id_maps
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.prepared import SUFFIX, is_prepared
from ssept_ext.data.sources.columns import Columns, RawEvents, arrow
from ssept_ext.data.sources.formats import FORMATS, read_source
from ssept_ext.data.sources.movielens import MOVIELENS_MD5, download
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.options import Range

IDS_SUFFIX = ".ids.json"
"""Suffix of the file of raw ids, appended to the name of the file of events."""


def prepare(options: argparse.Namespace) -> int:
    """Convert a published data set, or a CSV file, to a file for --data."""
    out, ids = Path(options.out), Path(f"{options.out}{IDS_SUFFIX}")
    mapped = is_prepared(out)
    for path in (out,) if mapped else (out, ids):
        if path.exists():
            raise ValueError(f"{path} exists: remove it first, or choose another --out")
    if (options.source is None) == (options.download is None):
        raise ValueError("give either SOURCE or --download, and not both")
    source = options.source or download(options.download, options.cache)
    name, format_name, events = read_events(source, options)
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
    if mapped:
        interactions.save(out)
        print(f"wrote  {out}, with the raw ids")
        return 0
    histories = interactions.to_histories().digest()
    save_id_maps(ids, interactions.user_ids, interactions.item_ids, histories)
    write_events(interactions, out)
    lost = "" if interactions.times is None else "; only a .safetensors keeps the times"
    print(f"wrote  {out}, and the raw ids to {ids}{lost}")
    return 0


def read_events(
    source: str | os.PathLike[str], options: argparse.Namespace
) -> tuple[str, str, RawEvents]:
    """Read a file as the flags of `add_columns` say: the names of the file and its format, and the events."""
    columns = Columns(options.user_col, options.item_col, options.time_col or None)
    return read_source(source, options.format, columns, quoting=options.quoting)


def write_events(interactions: Interactions, path: Path) -> None:
    """Write lines `user item`, compressed if the name ends in .gz, replacing `path` atomically."""
    pa = arrow()
    table = pa.table({"user": interactions.users, "item": interactions.items})
    options = pa.csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    compression = "gzip" if path.suffix == ".gz" else None

    def write(part: Path) -> None:
        with pa.output_stream(str(part), compression=compression) as stream:
            pa.csv.write_csv(table, stream, options)

    replace_file(path, write)


def add_prepare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare`."""
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
        help="download this MovieLens data set, whose terms of use are in the archive (default: read SOURCE)",
    )
    add("--cache", metavar="DIR", help="where downloads are kept (default: the user's cache)")
    add(
        "--out",
        required=True,
        type=output_file,
        metavar="FILE",
        help=f"the file to write: text, compressed if the name ends in .gz, or arrays to map into memory if it "
        f"ends in {SUFFIX} (required)",
    )
    add_columns(parser)
    add(
        "--duplicates",
        choices=get_args(Duplicates),
        default="keep",
        help="which events of the same user and item to keep: all, one, or one of consecutive ones",
    )
    for noun in ("user", "item"):
        add(
            f"--min-{noun}-events",
            default=5,
            help=f"repeatedly drop {noun}s with fewer events, until all have enough",
            **number(int, Range(1)),
        )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to read a file of events."""
    add = parser.add_argument
    add(
        "--format",
        choices=[*FORMATS, "csv"],
        help="the format of the file (default: detected from its first line)",
    )
    add("--user-col", default="user", metavar="NAME", help="user column of a generic CSV")
    add("--item-col", default="item", metavar="NAME", help="item column")
    add(
        "--time-col",
        default="timestamp",
        metavar="NAME",
        help="time column; an empty name if lines are in time order",
    )
    add(
        "--quoting",
        action=argparse.BooleanOptionalAction,
        default=True,
        help='whether " quotes fields of a CSV, which may then hold delimiters and line ends',
    )
