"""The commands `plot` and `info`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ssept_ext._extension import build_info
from ssept_ext.cli.options import add_run, output_file
from ssept_ext.cli.runs import METRICS_FILE, run_file
from ssept_ext.training.plotting import AXES, plot_curves


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
