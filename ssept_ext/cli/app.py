"""The command `ssept`: prepare, train, resume, plot, evaluate, predict, info.

`ssept train` makes a run folder with everything that later commands need: the model's checkpoint (see
`ssept_ext.checkpoint`), `run.json` with the source of the data and all options, `metrics.csv` and, until training has
finished, `training.safetensors`, from which `ssept resume` continues. Ctrl-C and SIGTERM save it before they stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ssept_ext import distributed
from ssept_ext.cli import commands, prepare, train

USER_ERROR = 2
PROCESS_LOST = 1
INTERRUPTED = 130  # as shells report a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process.

    Returns
    -------
    int
        The exit code: 0 for success; 2 for a user error, which is reported in one line on stderr; 130 after Ctrl-C; 143
        if SIGTERM interrupted training; 1 if another of torchrun's processes has ended.

    Examples
    --------
    >>> main(["evaluate", "missing-folder"])  # and "ssept: error: ..." on stderr
    2
    """
    code: int
    try:
        options = make_parser().parse_args(argv)
        code = options.command(options)
    except (
        *(OSError, ValueError, FloatingPointError, ImportError),
        distributed.ProcessLostError,
    ) as error:
        launched = distributed.launched()
        who = "ssept" if launched is None else f"ssept process {launched[0]} of {launched[1]}"
        print(f"{who}: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = PROCESS_LOST if isinstance(error, distributed.ProcessLostError) else USER_ERROR
        if distributed.size() > 1:  # here, while `error` still keeps the group alive
            distributed.end_process(code)
    except KeyboardInterrupt:
        print("ssept: interrupted", file=sys.stderr)
        code = INTERRUPTED
        if distributed.size() > 1:
            distributed.end_process(code)
    return code


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line. `command` in its result is the function to call."""
    parser = _Parser(
        prog="ssept", description="Train and use sequential recommenders: SSE-PT and SASRec."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(
        name: str,
        command: Callable[[argparse.Namespace], int],
        add_options: Callable[[argparse.ArgumentParser], None],
    ) -> None:
        assert command.__doc__ is not None
        sub = subparsers.add_parser(
            name, help=command.__doc__, description=command.__doc__, formatter_class=_HelpFormatter
        )
        sub.set_defaults(command=command)
        add_options(sub)

    add_command("train", train.train, train.add_options)
    add_command("resume", train.resume, train.add_resume_options)
    add_command("plot", commands.plot, commands.add_plot_options)
    add_command("evaluate", commands.evaluate_run, commands.add_evaluate_options)
    add_command("predict", commands.predict, commands.add_predict_options)
    add_command("prepare", prepare.run, prepare.add_options)
    add_command("info", commands.info, lambda _: None)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # The help text of an option without a default says itself what happens by default.
        return action.help if action.default is None else super()._get_help_string(action)
