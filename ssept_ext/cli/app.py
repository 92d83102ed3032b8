"""The command `ssept`: prepare, train, resume, update, plot, evaluate, compare, predict, export, serve, info.

`ssept train` makes a run folder with everything that later commands need: the model's checkpoint (see
`ssept_ext.checkpoint`), `run.json` with the source of the data and all options, `metrics.csv` and, until training has
finished, `training.safetensors`, from which `ssept resume` continues. Ctrl-C and SIGTERM save it before they stop. Then
there is `optimizer.safetensors`, from which `ssept update` continues.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn, TextIO

PROCESS_LOST = 1
USER_ERROR = 2
BUG = 70  # EX_SOFTWARE
INTERRUPTED = 130  # as shells report a process that Ctrl-C ended
PIPE_CLOSED = 141  # and one that wrote to a pipe that nobody reads

COMMANDS = {
    "train": ("train", "Train a model, write its run folder, and print its metrics."),
    "resume": ("train", "Resume an interrupted training, as if it had not been interrupted."),
    "update": ("update", "Add new events, users and items to a trained model, and train it on."),
    "plot": ("commands", "Plot the loss and the validation NDCG@10 of runs in one picture."),
    "evaluate": ("evaluate", "Measure a trained model among all items, or among sampled ones."),
    "compare": ("evaluate", "Compare two trained models user by user."),
    "predict": ("predict", "Print or write recommendations, without items that users have seen."),
    "export": (
        "export",
        "Write a model for other runtimes: ONNX, torch.export, AOTInductor, Triton.",
    ),
    "serve": ("serve", "Answer requests for recommendations over HTTP."),
    "prepare": ("prepare", "Convert a published data set, or a CSV file, to a file for --data."),
    "info": ("commands", "Print how the package was built and which backend each op uses."),
}
"""Module and help text of each command. The module has a function NAME and, for the flags, `add_NAME_options`."""

_USERS_MISTAKES = (OSError, ValueError, FloatingPointError, ImportError)
_TOO_LARGE = (
    "allocate memory|out of memory|multiplication overflow|size calculation overflow"  # of torch
    "|array is too big|Maximum allowed dimension"  # of NumPy
    "|threads could be started"  # of the sampler
)
_REPORT = "Please report it, with all lines above and the output of `ssept info`."
_MAX_MESSAGE = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process.

    Returns
    -------
    int
        The exit code: 0 for success; 2 for a user error, which is reported in one line on stderr; 70 for a bug of this
        package, reported with its traceback; 130 after Ctrl-C; 143 if SIGTERM interrupted training; 141 if nobody reads
        the output any more; 1 if another of torchrun's processes has ended.

    Examples
    --------
    >>> main(["evaluate", "missing-folder"])  # and "ssept: error: ..." on stderr
    2
    """
    argv = sys.argv[1:] if argv is None else argv
    _open_closed_streams()
    try:
        try:
            options = make_parser(argv).parse_args(argv)
            code: int = options.command(options)
        finally:
            sys.stdout.flush()  # here, where an error is caught
    except (Exception, KeyboardInterrupt) as error:
        code, message = _verdict(error, argv)
        with suppress(OSError):  # nobody may read stderr
            print(message, end="", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            _discard_unwritten(stream)
        distributed = sys.modules.get("ssept_ext.distributed")
        # Here, while `error` keeps the group alive.
        if distributed is not None and distributed.size() > 1:
            distributed.end_process(code)
    return code


def _verdict(error: BaseException, argv: Sequence[str]) -> tuple[int, str]:
    """Return the exit code for an exception and what to print: of a user's mistake one line, of a bug a traceback."""
    distributed = sys.modules.get("ssept_ext.distributed")
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    who = f"ssept process {rank} of {size}" if rank and size else "ssept"
    text = " ".join(str(error).split())
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED, ""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "ssept: interrupted\n"
    code = USER_ERROR
    if distributed is not None and isinstance(error, distributed.ProcessLostError):
        code = PROCESS_LOST
    elif isinstance(error, (MemoryError, OverflowError)) or re.search(_TOO_LARGE, text):
        text = f"too large for this machine{_largest_number(argv)}: {text or 'out of memory'}"
    elif not isinstance(error, _USERS_MISTAKES):
        told = "".join(traceback.format_exception(error))
        return BUG, f"{told}{who}: error: this looks like a bug of ssept_ext. {_REPORT}\n"
    if len(text) > _MAX_MESSAGE:
        text = f"{text[:_MAX_MESSAGE]}..."
    return code, f"{who}: error: {text}\n"


def _largest_number(argv: Sequence[str]) -> str:
    """Name the option of the command line with the largest number, which is likely the one that is too large."""
    given = re.findall(r"(-\S+)[ =](\d+)(?!\S)", " ".join(argv))
    sizes = [(int(number), flag) for flag, number in given if flag != "--seed"]
    return " (the largest number given is {1} {0})".format(*max(sizes)) if sizes else ""


def _open_closed_streams() -> None:
    """Open the null device for standard streams that are closed, whose place a data file would take otherwise."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _discard_unwritten(stream: TextIO) -> None:
    """Discard what a stream cannot write, which would be an error again when Python ends."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def make_parser(loaded: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Make the parser of the command line. `command` in its result is the function to call.

    Only the commands in `loaded` have their flags, because importing what they need takes seconds.
    """
    parser = _Parser(
        prog="ssept", description="Train and use sequential recommenders: SSE-PT and SASRec."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        sub = subparsers.add_parser(
            name, help=text, description=text, formatter_class=_HelpFormatter
        )
        if name in loaded:
            commands = import_module(f"ssept_ext.cli.{module}")
            getattr(commands, f"add_{name}_options")(sub)
            sub.set_defaults(command=getattr(commands, name))
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if (
            arg_strings == ["--"] and action.option_strings
        ):  # which argparse takes for no value at all
            raise argparse.ArgumentError(action, "must have a value, got --")
        return super()._get_values(action, arg_strings)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # The help text of an option without a default says itself what happens by default.
        return action.help if action.default is None else super()._get_help_string(action)
