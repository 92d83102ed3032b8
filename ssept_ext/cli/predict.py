"""The command `predict`: recommendations for some users, a file of them, all, or a live history."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from tqdm import tqdm

from ssept_ext.cli.options import (
    add_data,
    add_device,
    add_run,
    add_table,
    column_file,
    filled,
    number,
)
from ssept_ext.cli.report import Rows, print_columns
from ssept_ext.cli.runs import open_run
from ssept_ext.data.column_files import Columns, write_columns
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.models import SASREC
from ssept_ext.serving.by_index import Recommendations, recommend_by_index
from ssept_ext.serving.by_raw_id import rank_events
from ssept_ext.serving.requests import requested_at
from ssept_ext.utils.checks import parsed_integer, shown
from ssept_ext.utils.options import Range

_BLOCK = 4096
"""Users whose recommendations are in memory together."""

Ids = tuple[IdMap, IdMap] | None
Block = tuple[Sequence[str], Recommendations]
"""Users as they were given, and what is recommended to each."""


def predict(options: argparse.Namespace) -> int:
    """Print or write recommendations, by default based on all events of each user, without items they have seen."""
    model, dataset, _, ids = open_run(options)
    if options.table is not None:
        model = model.compress(options.table)
    blocks = (
        _live(model, ids, options) if options.history else _stored(model, dataset, ids, options)
    )
    if options.out is None:
        rows: Rows = [("user", "rank", "item", "score")]
        for block in blocks:
            columns = _columns(block, ids)
            scores = [f"{score:.4f}" for score in columns["score"]]
            parts = (columns["user"], columns["rank"], columns["item"], scores)
            rows += [tuple(map(str, row)) for row in zip(*parts, strict=True)]
        print_columns(rows)
    else:
        write_columns(options.out, (_columns(block, ids) for block in blocks))
        print(options.out)
    return 0


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict`."""
    # Words that begin with a dash and are no flags are ids, as argparse would take them if they were negative numbers.
    parser._negative_number_matcher = re.compile("-")
    add_run(parser)
    parser.add_argument(
        "--users",
        nargs="+",
        action="extend",
        metavar="ID",
        help="users to recommend to, by raw id if ssept prepare made the data; --users=-k for one that is "
        "like a flag (default: none)",
    )
    parser.add_argument(
        "--users-from",
        type=filled,
        metavar="FILE",
        help="a file with one user on each line; those without events are left out (default: none)",
    )
    parser.add_argument("--all-users", action="store_true", help="recommend to all with events")
    parser.add_argument(
        "--history",
        nargs="+",
        action="extend",
        metavar="ITEM",
        help="items, oldest first: recommend from these, to one of --users or to an unknown user (default: none)",
    )
    parser.add_argument("-k", default=10, help="number of items per user", **number(int, Range(1)))
    parser.add_argument(
        "--at",
        type=_time,
        metavar="TIME",
        help="when the next event will be, for a model with a time bias: an integer in the unit of the data, or a UTC "
        "date like 2026-03-01T12:00 (default: a user's newest time and the median time between events)",
    )
    parser.add_argument(
        "--out",
        type=column_file,
        metavar="FILE",
        help="write to a .csv or .parquet file instead of printing (default: none)",
    )
    add_table(parser)
    add_data(parser, "the data it was trained on")
    add_device(parser)


def _stored(
    model: SASREC, dataset: SASRecDataSet, ids: Ids, options: argparse.Namespace
) -> Iterator[Block]:
    """Recommend to the users that the flags name, from their events in the data, a block at a time."""
    given = [options.users is not None, options.users_from is not None, options.all_users]
    if sum(given) != 1:
        raise ValueError("give one of --users, --users-from, --all-users and --history")
    names: Sequence[str]
    if options.users is not None:
        names, users = options.users, [_user(text, dataset, ids) for text in options.users]
    elif options.users_from is not None:
        try:
            names = Path(options.users_from).read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{options.users_from} is not UTF-8: {error}") from None
        names = [text for text in (line.rstrip("\r") for line in names) if text]
        users = [_user(text, dataset, ids) for text in names]
    else:
        names, users = [], list(range(1, dataset.usernum + 1))
    index = np.array(users, np.int64)
    counts = np.zeros(dataset.usernum + 1, np.int64)
    histories = dataset.histories("all")
    counts[histories.users] = np.diff(histories.offsets)
    kept = np.flatnonzero(counts[index])
    if options.users is not None and len(kept) < len(index):
        text = names[int(counts[index].argmin())]
        known = f"within 1..{dataset.usernum}" if ids is None else f"{len(ids[0])} raw ids"
        raise ValueError(
            f"user {text} has no events in the data, whose users are {known}: give --history, by which others are "
            f"recommended to"
        )
    if not len(kept):
        raise ValueError("none of the users has events in the data")
    if options.users_from is not None and len(kept) < len(index):
        missing = len(index) - len(kept)
        _note(f"{missing} of {len(index)} users have no events in the data, and are left out")
    with tqdm(total=len(kept), unit=" users", disable=None if options.out else True) as bar:
        for first in range(0, len(kept), _BLOCK):
            rows = kept[first : first + _BLOCK]
            found = recommend_by_index(
                model, dataset, index[rows].tolist(), options.k, at=options.at
            )
            yield (
                [names[row] for row in rows] if names else _shown(index[rows], ids and ids[0]),
                found,
            )
            bar.update(len(rows))


def _live(model: SASREC, ids: Ids, options: argparse.Namespace) -> Iterator[Block]:
    """Recommend from the items on the command line."""
    if options.users_from is not None or options.all_users or len(options.users or [""]) > 1:
        raise ValueError("--history goes with one of --users at most")
    (name,) = options.users or ["-"]
    largest = getattr(model, "user_num", 0)  # SASREC has no users
    user = _index(name, ids and ids[0], largest)
    items = np.array([_index(text, ids and ids[1], model.item_num) for text in options.history])
    if unknown := np.count_nonzero(items == 0):
        _note(f"{unknown} of {len(items)} items are unknown to the model, and are left out")
    if not items.any():
        raise ValueError("--history must have an item that the model knows")
    events = [(items[items > 0], None)]
    yield (
        [name],
        rank_events(model, np.array([user]), events, options.k, at=requested_at(options.at, 1)),
    )


def _note(text: str) -> None:
    print(f"ssept: note: {text}", file=sys.stderr)


def _columns(block: Block, ids: Ids) -> Columns:
    names, found = block
    row, column = np.nonzero((found.items > 0) & np.isfinite(found.scores))
    items = found.items[row, column]
    return {
        "user": np.array(names, object)[row],
        "item": items if ids is None else ids[1].decode(items),
        "score": found.scores[row, column],
        "rank": column + 1,
    }


def _shown(users: IntArray, id_map: IdMap | None) -> list[str]:
    return [str(user) for user in (users if id_map is None else id_map.decode(users)).tolist()]


def _user(text: str, dataset: SASRecDataSet, ids: Ids) -> int:
    return _index(text, ids and ids[0], dataset.usernum)


def _index(text: str, id_map: IdMap | None, largest: int) -> int:
    """The index of a user or item in 1..largest, given by raw id if there are raw ids; 0 for an unknown one."""
    value: Any = parsed_integer(text)
    if id_map is not None:
        raw: int | str | UUID = value if id_map.type == "int64" else text
        if id_map.type == "uuid":
            with suppress(ValueError):
                raw = UUID(text)
        value = int(id_map.encode([raw], unknown="zero")[0])
    return value if isinstance(value, int) and 0 < value <= largest else 0


def _time(text: str) -> int | datetime:
    """Parse a time: an integer, or a date or datetime in ISO 8601."""
    if isinstance(number := parsed_integer(text), int):
        return number
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be an integer, or a date such as 2026-03-01T12:00, got {shown(text)}"
        ) from None
