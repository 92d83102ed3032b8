"""Learning curves of trainings, from the files that `ssept_ext.training.callbacks.csv_log` writes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require

Axis = Literal["epoch", "step", "seconds"]
AXES: tuple[Axis, ...] = get_args(Axis)

_PANELS = {"loss": "training loss", "val_ndcg": "validation NDCG@10"}
# Matplotlib has ten colours before it starts again: the next ten curves get the next marker.
_COLOURS, _MARKERS = 10, (".", "x", "^", "s")


def plot_curves(logs: Mapping[str, Path], out: Path, over: Axis = "epoch") -> None:
    """Draw the loss and the validation NDCG@10 of all trainings in one picture.

    Parameters
    ----------
    logs
        The CSV file of each training, under the name that it gets in the legend.
    out
        The picture, replaced in one step; of the type that its suffix says, PNG without one.
    over
        What the curves are drawn over.

    Raises
    ------
    ImportError
        If Matplotlib is missing: it comes with `ssept_ext[plot]`.
    OSError
        If a file cannot be read, or the picture not be written.
    ValueError
        If a CSV file has no epoch yet or is damaged, or `out` is of an unknown type.
    """
    figures = require("matplotlib.figure", "plot")
    curves = {name: _read(path, over) for name, path in logs.items()}
    height = 3.8 + 0.21 * len(logs)  # inches; so much takes a name in the legend
    figure = figures.Figure(figsize=(11, height), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            marker = _MARKERS[number // _COLOURS % len(_MARKERS)]
            axes.plot(*curve[column], marker=marker, markersize=4, label=name)
        axes.set(xlabel="seconds of training" if over == "seconds" else over, ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=over != "seconds")
        axes.grid(alpha=0.3)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center")  # names of runs are long
    kind = out.suffix[1:] or "png"
    replace_file(out, lambda part: figure.savefig(part, format=kind, dpi=150))


def _read(path: Path, over: Axis) -> dict[str, tuple[list[float], list[float]]]:
    """The points of the curve in each panel."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no epoch yet")
    try:
        points = {
            column: [(float(row[over]), float(row[column])) for row in rows if row[column] != ""]
            for column in _PANELS
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no log of a training: {error!r}") from error
    return {column: ([x for x, _ in xy], [y for _, y in xy]) for column, xy in points.items()}
