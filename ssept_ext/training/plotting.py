"""Plots of learning curves, from the files that `ssept_ext.training.callbacks.csv_log` writes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require

Axis = Literal["epoch", "step", "seconds"]
AXES: tuple[Axis, ...] = get_args(Axis)

_COLUMNS = ("loss", "val_ndcg")
# Matplotlib repeats its colours after ten curves: each ten get another marker.
_COLOURS, _MARKERS = 10, (".", "x", "^", "s")


def plot_curves(logs: Mapping[str, Path], out: Path, over: Axis = "epoch") -> None:
    """Plot the loss and the validation NDCG@10 of several training runs in one picture.

    Parameters
    ----------
    logs
        The CSV file of each run, by its name in the legend.
    out
        The picture, which is replaced atomically. Its suffix gives the file type, by default PNG.
    over
        The x axis: "epoch", "step" or "seconds".

    Raises
    ------
    ImportError
        If Matplotlib is not installed; it comes with `ssept_ext[plot]`.
    OSError
        If a file cannot be read, or the picture cannot be written.
    ValueError
        If a CSV file has no epoch yet or is damaged, or the file type of `out` is unknown.
    """
    figures = require("matplotlib.figure", "plot")
    curves = {name: _read(path, over) for name, path in logs.items()}
    among = sorted({kind for curve in curves.values() for kind in curve.validations})
    titles = {"loss": "training loss", "val_ndcg": ", ".join(["validation NDCG@10", *among])}
    height = 3.8 + 0.21 * len(logs)  # inches, with room for the legend's names
    figure = figures.Figure(figsize=(11, height), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            marker = _MARKERS[number // _COLOURS % len(_MARKERS)]
            axes.plot(*curve.points[column], marker=marker, markersize=4, label=name)
        axes.set(xlabel="seconds of training" if over == "seconds" else over, ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=over != "seconds")
        axes.grid(alpha=0.3)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center")  # because names of runs are long
    kind = out.suffix[1:] or "png"
    replace_file(out, lambda part: figure.savefig(part, format=kind, dpi=150))


class _Curves(NamedTuple):
    points: dict[str, tuple[list[float], list[float]]]
    """The x and y values of the curve in each panel."""
    validations: set[str]
    """What was ranked among."""


def _read(path: Path, over: Axis) -> _Curves:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        points = {
            column: [(float(row[over]), float(row[column])) for row in rows if row[column] != ""]
            for column in _COLUMNS
        }
        # Earlier versions ranked among samples, and had no column for it.
        validations = {row.get("validation") or "sampled" for row in rows if row["val_ndcg"]}
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no log of a training: {error!r}") from error
    if not rows:
        raise ValueError(f"{path} has no epoch yet")
    return _Curves(
        {column: ([x for x, _ in xy], [y for _, y in xy]) for column, xy in points.items()},
        validations,
    )
