"""Train RecTools' models and ours on one split, and compare full-ranking NDCG@10 over seconds of training.

    pip install "ssept_ext[peers]"
    python bench/peers.py --dataset ml-100k
    python bench/peers.py --dataset ml-100k --models sse-pt-time rectools-hstu --seconds 300 --seeds 0 1 2

Each model has the settings that its authors recommend for ML-1M; `--set NAME=VALUE` changes ours. Every few epochs it
ranks all items to find the validation event. Training ends after its epochs, or with the first validation after
`--seconds`. The model of the best epoch is asked for the test event, once. The ranks of all models are counted here:
items of the input are left out, and items with the score of the one to find rank above it. `rectools.metrics` must
have the same figures for the same rankings.

The models are trained one after another, all on the same number of cores. Seconds are those of training, without
validations. The folder --out gets what is printed: `table.md`, and `curves.csv` with a line for each validation, of
which `curves.png` is a picture.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from data_sets import DATASETS, Settings, kind_of
from questions import Model, Questions, Reference, Scores, Stopwatch, Validate, measure
from reproduce import parse_changes
from workload import SHARED

from ssept_ext import SASREC, SASRecDataSet
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training.callbacks import Progress
from ssept_ext.training.presets import PRESETS
from ssept_ext.training.recipe import Recipe
from ssept_ext.utils.optional import require

OURS: dict[str, tuple[str, Settings]] = {
    "sasrec": ("sasrec-sampled-softmax", {}),
    "sse-pt": ("sse-pt-sampled-softmax", {}),
    "sse-pt-time": ("sse-pt-sampled-softmax", {"time_bias": True}),
    "sse-pt-gated": ("sse-pt++-gated", {}),
}
"""Presets, and what is changed of them."""
_PEERS = ("rectools-sasrec", "rectools-ligr", "rectools-hstu", "rectools-hstu-large")
PEERS = (*_PEERS, *(f"{name}-softmax" for name in _PEERS))
"""As recommended, and with RecTools' default loss."""
WITH_TIME = ("sse-pt-time",)
_QUICK: Settings = {"embedding_dim": 8, "seq_max_len": 10, "batch_size": 10, "num_epochs": 4}
_MARKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Of --seconds: when the table shows validations."""


class Ours:
    """A model of this package."""

    module: SASREC

    def __init__(self, data: SASRecDataSet, recipe: Recipe[SASREC], val_epoch: int) -> None:
        self._data, self._recipe, self._val_epoch = data, recipe, val_epoch

    def train(self, seed: int, validate: Validate) -> None:
        torch.manual_seed(seed)
        self.module = self._recipe.make_model(self._data.itemnum, self._data.usernum)
        watch, num_epochs = Stopwatch(), self._recipe.loop.num_epochs

        def after(progress: Progress) -> bool:
            epoch = progress.epochs[-1].epoch
            if epoch % self._val_epoch and epoch < num_epochs:
                return False
            watch.stop()
            is_over = validate(epoch, watch)
            watch.start()
            return is_over

        with self._recipe.make_sampler(self._data, self.module.seq_max_len, seed) as sampler:
            watch.start()
            self._recipe.train(self.module, self._data, sampler, verbose=False, callbacks=[after])

    def scores(self, asked: Questions) -> Scores:
        num_items = self.module.item_num
        histories = SASRecDataSet(histories=asked.inputs, hold_out=False)
        at = None
        if self._recipe.model["time_bias"]:
            assert asked.at is not None
            at = asked.at.tolist()
        users = asked.inputs.users.tolist()
        found = self.module.recommend(histories, users, num_items, exclude_seen=False, at=at)
        scores = np.full((len(users), num_items + 1), -np.inf)
        np.put_along_axis(scores, found.items, found.scores.astype(np.float64), 1)
        return scores


@dataclass(frozen=True)
class Point:
    """A validation."""

    epoch: int
    wall: float
    cpu: float
    ndcg: float
    hr: float


@dataclass(frozen=True)
class Run:
    model: str
    seed: int
    points: list[Point] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    """NDCG@10 and HR@10."""

    @property
    def best(self) -> Point:
        return max(self.points, key=lambda point: point.ndcg)


def contest(
    run: Run, model: Model, data: SASRecDataSet, seconds: float, clock: str, reference: Reference
) -> None:
    """Train a model, and ask it for the test events as it was at its best validation."""
    asked, best = Questions.of(data, "valid"), dict[str, Any]()

    def validate(epoch: int, watch: Stopwatch) -> bool:
        nonlocal best
        ndcg, hr = measure(model, asked, data.itemnum, reference)
        point = Point(epoch, watch.wall, watch.cpu, ndcg, hr)
        run.points.append(point)
        if run.best is point:
            best = deepcopy(model.module.state_dict())
        print(f"{run.model}, seed {run.seed}: {point}", file=sys.stderr, flush=True)
        return getattr(point, clock) >= seconds

    model.train(run.seed, validate)
    model.module.load_state_dict(best)
    run.test.extend(measure(model, Questions.of(data, "test"), data.itemnum, reference))


def ours(name: str, data: SASRecDataSet, options: argparse.Namespace) -> Ours:
    preset, changes = OURS[name]
    kind, original = kind_of(preset), PRESETS[preset]
    if not options.quick:
        adapted = DATASETS[options.dataset].settings(preset, original)
        changes = changes | {k: v for k, v in adapted.items() if original.get(k) != v}
    else:
        changes = changes | _QUICK
    changes = changes | parse_changes(options.set, kind) | {"val_epoch": 0, "restore_best": False}
    recipe = Recipe.of(kind, preset, changes, data.num_users)
    return Ours(data, recipe, options.val_epoch)


def make(name: str, data: SASRecDataSet, options: argparse.Namespace) -> Model:
    """A new model; a peer is given training events, and nothing else of the data."""
    if name in OURS:
        return ours(name, data, options)
    train = data.histories("train")
    model: Model = _rectools().make(name, train, data.itemnum, options.val_epoch, options.quick)
    return model


def _rectools() -> Any:
    """What needs RecTools."""
    return importlib.import_module("rectools_models")


def tabulate(runs: Sequence[Run], seconds: float, clock: str) -> str:
    """A Markdown row for each model, of means over seeds: the best validations so far, and the test."""
    marks = [seconds * mark for mark in _MARKS]
    after = [f"validation NDCG@10 after {mark:.3g} s" for mark in marks]
    ends = ["best epoch", "epochs", f"{clock} seconds", "test NDCG@10", "test HR@10"]
    lines = [["model", "seeds", *after, *ends]]
    lines.append(["---"] * len(lines[0]))
    for name in dict.fromkeys(run.model for run in runs):
        of_name = [run for run in runs if run.model == name]
        curves = [[(getattr(x, clock), x.ndcg) for x in run.points] for run in of_name]
        so_far = [
            [max((y for x, y in c if x <= mark), default=None) for c in curves] for mark in marks
        ]
        seeds = " ".join(str(run.seed) for run in of_name)
        last = [run.points[-1] for run in of_name]
        lines.append([name, seeds, *map(_cell, so_far)])
        lines[-1] += [_whole(run.best.epoch for run in of_name), _whole(x.epoch for x in last)]
        lines[-1] += [_whole(getattr(x, clock) for x in last)]
        lines[-1] += [
            _cell(figures) for figures in zip(*(run.test for run in of_name), strict=True)
        ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(figures: Sequence[float | None]) -> str:
    """Mean and, of several, standard deviation; a dash where a run has none yet."""
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures):
        return "–"
    spread = f" ± {stdev(known):.4f}" if len(known) > 1 else ""
    return f"{mean(known):.4f}{spread}"


def _whole(numbers: Iterable[float]) -> str:
    return f"{mean(numbers):.0f}"


def curves_csv(runs: Sequence[Run]) -> str:
    """A line for each validation."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "seed", "epoch", "wall", "cpu", "valid_ndcg", "valid_hr"])
    for run in runs:
        for x in run.points:
            seconds = (f"{x.wall:.1f}", f"{x.cpu:.1f}")
            writer.writerow(
                [run.model, run.seed, x.epoch, *seconds, f"{x.ndcg:.5f}", f"{x.hr:.5f}"]
            )
    return file.getvalue()


def plot(runs: Sequence[Run], clock: str, out: Path) -> None:
    """Plot the validations of all runs, in one colour for each model."""
    figures = require("matplotlib.figure", "plot")
    figure = figures.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for run in runs:
        label = run.model if run.model not in colours else None
        colour = colours.setdefault(run.model, f"C{len(colours)}")
        points = [(getattr(x, clock), x.ndcg) for x in run.points]
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=label)
    axes.set(xlabel=f"{clock} seconds of training", ylabel="validation NDCG@10 among all items")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=150)


@contextmanager
def cores(number: int) -> Iterator[None]:
    """Use this many, for the threads of torch and all others; the system must be Linux."""
    allowed, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(allowed)[-number:])
    torch.set_num_threads(number)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(num_threads)


def load(options: argparse.Namespace) -> SASRecDataSet:
    if options.quick:
        events = synthetic(num_users=40).histories("all")
        times = 3600 * np.arange(len(events.items))
        return SASRecDataSet(histories=events._replace(times=times))
    known = DATASETS[options.dataset]
    return known.load(options.data / known.file)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="ml-1m")
    add(
        "--models",
        nargs="+",
        choices=(*OURS, *PEERS),
        help="default: all that fit the data, as recommended, but the large one",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of ours")
    add("--seconds", type=float, default=900, metavar="S", help="of training, for each model")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu where others use the machine")
    add("--cores", type=int, default=1, metavar="N", help="and threads")
    add("--val-epoch", type=int, default=5, metavar="N", help="validate after every N epochs")
    add("--seeds", type=int, nargs="+", default=[0], metavar="S")
    add("--out", type=Path, default=Path("runs/peers"), metavar="DIR")
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="of the data sets")
    add("--quick", action="store_true", help="synthetic data, tiny sizes: a test that it runs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    runs: list[Run] = []
    try:
        reference, data = _rectools().ndcg_and_hr, load(options)
        require("matplotlib.figure", "plot")  # before hours of training
        has_times = data.histories("train").times is not None
        fitting = [x for x in (*OURS, *_PEERS[:-1]) if has_times or x not in WITH_TIME]
        options.out.mkdir(parents=True, exist_ok=True)
        with cores(options.cores):
            for seed in options.seeds:
                for name in options.models or fitting:
                    runs.append(Run(name, seed))
                    model = make(name, data, options)
                    contest(runs[-1], model, data, options.seconds, options.clock, reference)
                    table = tabulate(runs, options.seconds, options.clock)
                    (options.out / "table.md").write_text(table)
                    (options.out / "curves.csv").write_text(curves_csv(runs))
                    plot(runs, options.clock, options.out / "curves.png")
    except ModuleNotFoundError as error:
        sys.exit(f'peers: {error}; pip install "ssept_ext[peers]"')
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"peers: {error}")
    print(table, curves_csv(runs), sep="\n", end="")


if __name__ == "__main__":
    main()
