"""Makes command-line flags from dataclasses of options, and adds the flags that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from ssept_ext import distributed
from ssept_ext._extension import Backend, build_info
from ssept_ext.utils.options import POSITIVE, Range, without_none


def add_fields(
    group: argparse._ActionsContainer,
    options: type,
    defaults: Mapping[str, Any],
    names: Iterable[str],
) -> None:
    """Add a flag for each named field that `ssept_ext.utils.options.option` declared.

    The parsed value of a flag that is not given is None, so that a preset can fill it in. `defaults` are only shown in
    the help texts.
    """
    hints = get_type_hints(options)
    declared = {field.name: field for field in fields(options)}
    for name in names:
        field, default = declared[name], defaults.get(name)
        text = field.metadata["help"].replace("%", "%%")
        text += f" (default: {_shown(default)})"
        group.add_argument(
            f"--{field.metadata['flag'] or name.replace('_', '-')}",
            dest=name,
            help=text,
            **_parsing(field, without_none(hints[name])),
        )


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return " ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def _parsing(field: Field[Any], kind: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` that parse a value of the type `kind`."""
    within: Range | None = field.metadata["within"]
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    assert within is not None
    if kind is int:
        return {"type": integer_from(int(within.low)), "metavar": "N"}
    if get_origin(kind) is tuple:
        return {"type": number_within(within), "nargs": len(get_args(kind)), "metavar": "X"}
    return {"type": number_within(within), "metavar": "X"}


def integer_from(low: int) -> Callable[[str], int]:
    """Make a parser of integers of at least `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text!r}")
        return value

    return parse


def number_within(within: Range) -> Callable[[str], float]:
    """Make a parser of numbers in a range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if value not in within:
            raise argparse.ArgumentTypeError(f"must be {within}, got {text!r}")
        return value

    return parse


def add_integer(
    group: argparse._ActionsContainer,
    flag: str,
    low: int,
    default: int | None,
    text: str,
    dest: str | None = None,
) -> None:
    """Add a flag for an integer of at least `low`. Its value is named after the flag unless `dest` is given."""
    group.add_argument(
        flag,
        type=integer_from(low),
        default=default,
        metavar="N",
        help=text,
        dest=dest or flag.lstrip("-").replace("-", "_"),
    )


def add_run(parser: argparse.ArgumentParser, dest: str = "run", nargs: str | None = None) -> None:
    """Add the argument for a run folder."""
    parser.add_argument(dest, nargs=nargs, metavar="RUN", help="a run folder made by ssept train")


def add_data(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add the flags for a file of events. The help text says that the default is `otherwise`."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="FILE",
        help=f"lines of user, item and, optionally, time; may be .gz (default: {otherwise})",
    )
    group.add_argument(
        "--col-sep", metavar="SEP", help="column separator (default: any whitespace)"
    )


def add_timeout(parser: argparse._ActionsContainer) -> None:
    """Add the timeout of training with several processes."""
    parser.add_argument(
        "--timeout",
        type=number_within(POSITIVE),
        default=distributed.TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long a process that torchrun started waits for the others",
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
