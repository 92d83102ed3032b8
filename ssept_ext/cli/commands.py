"""The commands `plot`, `predict` and `info`."""

from __future__ import annotations

import argparse
import math
import re
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from uuid import UUID

from ssept_ext._extension import build_info
from ssept_ext.cli.options import add_data, add_device, add_run, number, output_file
from ssept_ext.cli.report import Rows, print_columns
from ssept_ext.cli.runs import METRICS_FILE, open_run, run_file
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.id_map import IdMap
from ssept_ext.serving.by_index import recommend_by_index
from ssept_ext.training.plotting import AXES, plot_curves
from ssept_ext.utils.checks import parsed_integer, shown
from ssept_ext.utils.options import Range


def plot(options: argparse.Namespace) -> int:
    """Plot the loss and the validation NDCG@10 of runs in one picture."""
    logs = {name: Path(name) / METRICS_FILE for name in options.runs}
    for name, log in logs.items():
        run_file(Path(name))
        if not log.is_file():
            raise ValueError(f"{name} has no {METRICS_FILE} yet: its first epoch is not over")
    plot_curves(logs, Path(options.out), options.over)
    print(options.out)
    return 0


def add_plot_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plot`."""
    add_run(parser, nargs="+", dest="runs")
    parser.add_argument(
        "--out", default="curves.png", type=output_file, metavar="PNG", help="the picture"
    )
    parser.add_argument("--over", choices=AXES, default="epoch", help="x axis of the curves")


def predict(options: argparse.Namespace) -> int:
    """Print recommendations for some users, based on all their events, without items they have seen."""
    model, dataset, _, ids = open_run(options)
    users = [_user_index(text, dataset, ids) for text in options.users]
    found = recommend_by_index(model, dataset, users, options.k, at=options.at)
    items = found.items.astype(object)
    if ids is not None:
        items[found.items > 0] = ids[1].decode(found.items[found.items > 0])
    rows: Rows = [("user", "rank", "item", "score")]
    for text, row, scores in zip(options.users, items, found.scores, strict=True):
        rows += [
            (text, str(rank), str(item), f"{score:.4f}")
            for rank, (item, score) in enumerate(zip(row, scores, strict=True), 1)
            if item != 0 and math.isfinite(score)
        ]
    print_columns(rows)
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
        required=True,
        metavar="ID",
        help="users to recommend to, by raw id if ssept prepare made the data; --users=-k for one that is "
        "like a flag (required)",
    )
    parser.add_argument("-k", default=10, help="number of items per user", **number(int, Range(1)))
    parser.add_argument(
        "--at",
        type=_time,
        metavar="TIME",
        help="when the next event will be, for a model with a time bias: an integer in the unit of the data, or a UTC "
        "date like 2026-03-01T12:00 (default: a user's newest time and the median time between events)",
    )
    add_data(parser, "the data it was trained on")
    add_device(parser)


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `info`: there are none."""


def info(options: argparse.Namespace) -> int:
    """Print how the package was built and which backend each op uses."""
    report = asdict(build_info())
    backends: dict[str, dict[str, str]] = report.pop("ops")
    for name, value in report.items():
        print(f"{name.replace('_', ' '):<20}  {value or '-'}")
    for op, by_device in backends.items():
        for device, backend in by_device.items():
            print(f"{op:<20}  {device:<4}  {backend}")
    return 0


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


def _user_index(text: str, dataset: SASRecDataSet, ids: tuple[IdMap, IdMap] | None) -> int:
    """Return the index of a user, given by raw id if there are raw ids; a ValueError if the user has no events."""
    user = parsed_integer(text)
    if ids is not None:
        raw: int | str | UUID = user if ids[0].type == "int64" else text
        if ids[0].type == "uuid":
            with suppress(ValueError):
                raw = UUID(text)
        user = int(ids[0].encode([raw], unknown="zero")[0])
    if isinstance(user, str) or not 0 < user <= dataset.usernum:
        user = 0
    if not len(dataset.histories("all", [user]).items):
        known = f"within 1..{dataset.usernum}" if ids is None else f"{len(ids[0])} raw ids"
        raise ValueError(f"user {text} has no events in the data, whose users are {known}")
    return user
