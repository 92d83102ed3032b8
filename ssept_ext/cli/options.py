"""Makes command-line flags from dataclasses of options, and adds the flags that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import torch

from ssept_ext import distributed
from ssept_ext._extension import Backend, build_info
from ssept_ext.data.column_files import check_format
from ssept_ext.network.compressed import ItemDtype
from ssept_ext.utils.checks import parsed_integer, shown
from ssept_ext.utils.options import Range, check_number, field_types, without_none


def add_fields(
    group: argparse._ActionsContainer,
    options: type,
    defaults: Mapping[str, Any],
    names: Iterable[str],
) -> None:
    """Add a flag for each named field that `ssept_ext.utils.options.option` declared.

    There is no parsed value of a flag that is not given, so that a preset can fill it in. `defaults` are only shown in
    the help texts.
    """
    hints = field_types(options)
    declared = {field.name: field for field in fields(options)}
    for name in names:
        told = declared[name].metadata
        group.add_argument(
            f"--{told['flag'] or name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{told['help'].replace('%', '%%')} (default: {_shown(defaults.get(name))})",
            **_parsing(without_none(hints[name]), told["within"], told["none"]),
        )


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return " ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def _parsing(kind: Any, within: Range, none: str | None) -> dict[str, Any]:
    """Return the arguments of `add_argument` that parse a value of the type `kind`, or the word for None."""
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return number(float, within) | {"nargs": len(get_args(kind))}
    return number(kind, within, none)


def number(kind: type[float], within: Range, none: str | None = None) -> dict[str, Any]:
    """Return the arguments of `add_argument` that parse a number within a range, or the word for None."""

    def parse(text: str) -> Any:
        if text == none:
            return None
        value: Any = parsed_integer(text)
        if kind is float and "_" not in text:
            with suppress(ValueError):
                value = float(text)
        try:
            return check_number("", value, kind, within)
        except ValueError as error:
            limit = str(error).partition(", got ")[0].strip()
            choice = f", or {none}" if none else ""
            raise argparse.ArgumentTypeError(f"{limit}{choice}, got {shown(text)}") from None

    metavar = "N" if kind is int else "X"
    return {"type": parse, "metavar": f"{metavar}|{none}" if none else metavar}


def filled(text: str) -> str:
    """Parse a text that may not be empty."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a text that is not empty, got {text!r}")
    return text


def output_file(text: str) -> str:
    """Parse the path of a file to write, whose folder must exist, so that no work is done in vain."""
    folder = os.path.dirname(filled(text)) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{folder} is not a folder that can be written to")
    return text


def column_file(text: str) -> str:
    """Parse the path of a CSV or Parquet file to write."""
    try:
        check_format(output_file(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def output_folder(text: str) -> str:
    """Parse the path of a folder to write to, which is made later if it is missing."""
    folder = os.path.abspath(filled(text))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    output_file(os.path.join(folder, "file"))
    return text


def add_run(parser: argparse.ArgumentParser, dest: str = "run", nargs: str | None = None) -> None:
    """Add the argument for a run folder."""
    parser.add_argument(
        dest, nargs=nargs, type=filled, metavar="RUN", help="a run folder made by ssept train"
    )


def add_data(parser: argparse.ArgumentParser, otherwise: str) -> argparse._ActionsContainer:
    """Add a group of flags for a file of events. The help text says that the default is `otherwise`."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=filled,
        metavar="FILE",
        help="lines of user, item and, optionally, time, which may be .gz, or the .safetensors of ssept prepare "
        f"(default: {otherwise})",
    )
    group.add_argument(
        "--col-sep",
        type=filled,
        metavar="SEP",
        help="column separator (default: any whitespace)",
    )
    return group


def add_item_features(parser: argparse._ActionsContainer, of: str, otherwise: str) -> None:
    """Add the flag for a file of features of items."""
    parser.add_argument(
        "--item-features",
        type=filled,
        metavar="FILE",
        help=f"a .csv, .tsv or .parquet file of what is known of {of}, whose first column holds raw ids: texts and "
        f"categories are hashed, and floats, such as embeddings, are taken as they are (default: {otherwise})",
    )


def add_split(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which events are held out."""
    group = parser.add_argument_group("split")
    group.add_argument(
        "--split",
        choices=["last", "time"],
        default="last",
        help="hold out the last two events of each user, or the latest events of all",
    )
    add_shares(group, "of --split time", "0.1")


def add_shares(parser: argparse._ActionsContainer, of: str, otherwise: str) -> None:
    """Add the flags for the sizes of the parts of a split by time, with the defaults that the help texts name."""
    for part in ("valid", "test"):
        parser.add_argument(
            f"--{part}-share",
            help=f"share of all events in the {part} part {of} (default: {otherwise})",
            **number(float, Range(0, 0.99)),
        )


def add_timeout(parser: argparse._ActionsContainer) -> None:
    """Add the timeout of training with several processes."""
    parser.add_argument(
        "--timeout",
        default=distributed.TIMEOUT_SECONDS,
        help="seconds that a process that torchrun started waits for the others",
        **number(float, Range(1e-3, 10**9)),
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add the flags for device and backend."""
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="where to compute (default: cuda if there is one)"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="auto",
        help="compiled kernels (native), plain PyTorch (reference), or the best available (auto)",
    )


def add_table(parser: argparse._ActionsContainer) -> None:
    """Add the flag for compressed item vectors."""
    parser.add_argument(
        "--table",
        choices=get_args(ItemDtype),
        help="rank by item vectors in fewer bytes, which is faster for a million items, and a little less exact "
        "(default: the model's own)",
    )


def choose_device(options: argparse.Namespace) -> torch.device:
    """Return the device to run on; a ValueError if it is not available or the backend has no kernels for it."""
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no CUDA device")
    device = torch.device(options.device or ("cuda" if has_cuda else "cpu"))
    if device.type == "cuda" and distributed.launched() is not None:
        device = torch.device("cuda", distributed.local_rank())
    if options.backend == "native":
        for op, backends in build_info().ops.items():
            if backends[device.type] != "native":
                raise ValueError(
                    f"--backend native: {op} has none for {device.type}, only the "
                    f"{backends[device.type]}"
                )
    return device
