"""Train with the papers' settings, keep the best model by validation, and compare its test metrics with the papers'.

    python bench/reproduce.py --dataset ml-1m --preset sse-pt
    python bench/reproduce.py --dataset ml-1m --preset sasrec --seed 1 --set dropout_rate=0.3

Each run has a folder DIR/DATASET/PRESET-seed-N with `run.json` (settings), `metrics.csv` (by step and second), the
best model's checkpoint and, at the end, `result.json`. Call an interrupted run again to resume it. The parent folder
has `curves.png` and `table.md` of all its runs. The test set is evaluated once, at the end of a run. Sampled metrics
are means of 10 draws of negatives for all users and, as the authors measure, of 10 draws of 10,000 users and their
negatives, with the standard deviation over the draws. To measure a finished run again, remove its `result.json` and
call it again.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from data_sets import DATASETS, OFTEN, DataSet, Settings, kind_of
from measure import Options, machine_kind
from workload import SHARED

from ssept_ext import SASREC, SSEPT, SASRecDataSet
from ssept_ext.checkpoint.model import save_checkpoint
from ssept_ext.data.synthetic import synthetic
from ssept_ext.evaluation import evaluate_repeated
from ssept_ext.evaluation.candidates import MAX_USERS
from ssept_ext.training import presets
from ssept_ext.training.callbacks import Progress, csv_log
from ssept_ext.training.interruption import TrainingInterrupted
from ssept_ext.training.plotting import plot_curves
from ssept_ext.training.recipe import Recipe, option_names
from ssept_ext.utils.files import replace_file

RUN_FILE, METRICS_FILE, RESULT_FILE = "run.json", "metrics.csv", "result.json"
CURVES_FILE, TABLE_FILE = "curves.png", "table.md"
TEST_SEED, NUM_DRAWS = 42, 10
"""Draw the users and negatives of the test, for every run the same."""

Metrics = dict[str, float]


# The figures on file are of the best epoch by sampled NDCG.
_MEASURED: Settings = {"val_epoch": 10, "validation": "sampled", "restore_best": True}
_WITHOUT_SSE: Settings = {"sse_user_prob": 0.0, "sse_item_prob": 0.0, "sse_joint": False}
# Losses over many items learn more in an epoch.
_FEWER_EPOCHS: Settings = {"learning_rate": 1e-3, "warmup_steps": 0, "num_epochs": 60, **OFTEN}
_SOFTMAX: Settings = {"loss": "softmax", **_FEWER_EPOCHS}
# As in gSASRec's published row: Petrov & Macdonald, RecSys 2023.
_GBCE: Settings = {"loss": "gbce", "gbce_t": 0.75, "num_negatives": 256, **_FEWER_EPOCHS}
_SSE_PT = presets.PRESETS["sse-pt"] | _MEASURED
_SASREC = presets.PRESETS["sasrec"] | _MEASURED | OFTEN

PRESETS: dict[str, Settings] = {
    "sse-pt": _SSE_PT,
    "sse-pt++": presets.PRESETS["sse-pt++"] | _MEASURED,
    "sse-pt-no-sse": _SSE_PT | _WITHOUT_SSE,
    "sse-pt-gbce": _SSE_PT | _GBCE,
    "sse-pt-sampled-softmax": presets.PRESETS["sse-pt-sampled-softmax"] | _MEASURED,
    "sse-pt++-sampled-softmax": presets.PRESETS["sse-pt++-sampled-softmax"] | _MEASURED,
    "sse-pt++-gated": presets.PRESETS["sse-pt++-gated"] | _MEASURED | {"validation": "full"},
    "sse-pt-softmax": _SSE_PT | _SOFTMAX,
    "sasrec": _SASREC,
    "sasrec-gbce": _SASREC | {"embedding_dim": 128, "dropout_rate": 0.5} | _GBCE,
    "sasrec-sampled-softmax": presets.PRESETS["sasrec-sampled-softmax"] | _MEASURED,
    "sasrec-softmax": _SASREC | {"embedding_dim": 128} | _SOFTMAX,
}
"""Those of the product, and others to compare with: keywords of `SSEPT.fit` or `SASREC.fit`."""

OLD_NAMES = {"item_dim": "embedding_dim", "user_dim": "user_embedding_dim", "epochs": "num_epochs"}
"""Of settings, in the commands of runs that are on file."""


_SAMPLED, _FULL = ("HR@10", "NDCG@10"), ("full HR@10", "full NDCG@10")
# Sampled: Wu et al., RecSys 2020. Full ranking: Petrov & Macdonald, RecSys 2023.
PUBLISHED: dict[tuple[str, str], Metrics] = {
    ("ml-1m", "sse-pt"): dict(zip(_SAMPLED, (0.8341, 0.6281), strict=True)),
    ("ml-1m", "sse-pt++"): dict(zip(_SAMPLED, (0.8389, 0.6292), strict=True)),
    ("ml-1m", "sse-pt-no-sse"): dict(zip(_SAMPLED, (0.7658, 0.5241), strict=True)),
    ("ml-1m", "sasrec"): dict(zip(_SAMPLED + _FULL, (0.8233, 0.5936, 0.2500, 0.1341), strict=True)),
    ("ml-1m", "sasrec-gbce"): dict(zip(_FULL, (0.3003, 0.1726), strict=True)),
    ("games", "sse-pt"): dict(zip(_SAMPLED, (0.7757, 0.5660), strict=True)),
    ("games", "sse-pt-no-sse"): dict(zip(_SAMPLED, (0.6427, 0.4434), strict=True)),
    ("games", "sasrec"): dict(zip(_SAMPLED, (0.7434, 0.5401), strict=True)),
}
# The papers train by "bce". The other loss is to be compared with the same rows.
PUBLISHED |= {
    (dataset, f"{preset}-sampled-softmax"): row
    for (dataset, preset), row in PUBLISHED.items()
    if f"{preset}-sampled-softmax" in PRESETS
}

_QUICK: Settings = {
    "embedding_dim": 16,
    "seq_max_len": 20,
    "num_blocks": 1,
    "batch_size": 32,
    "learning_rate": 0.005,
    "warmup_steps": 0,
    "num_epochs": 6,
    "val_epoch": 2,
    "num_neg_test": 20,
}


@dataclass(frozen=True)
class Run:
    dataset: str
    preset: str
    settings: Settings
    seed: int
    changes: tuple[str, ...]
    """What --set and --epochs changed of the preset, as "name=value"."""
    folder: Path

    @property
    def recipe(self) -> Recipe[SASREC]:
        return Recipe.from_options(kind_of(self.preset), self.settings)

    @property
    def name(self) -> str:
        return ",".join((f"{self.preset}-seed-{self.seed}", *self.changes))


def run_from(options: argparse.Namespace) -> tuple[Run, SASRecDataSet]:
    """What the command line asks for, and its data."""
    name = "synthetic" if options.quick else options.dataset
    known = DATASETS.get(name, DataSet(name))
    settings = known.settings(options.preset, PRESETS[options.preset])
    if options.quick:
        settings = settings | _QUICK
        if kind_of(options.preset) is SSEPT:
            settings["user_embedding_dim"] = 8
    changes = [*options.set, *([f"epochs={options.epochs}"] if options.epochs else [])]
    settings = settings | parse_changes(changes, kind_of(options.preset))
    val_epoch, num_epochs = settings["val_epoch"], settings["num_epochs"]
    if not 1 <= val_epoch <= num_epochs:
        raise ValueError(f"val_epoch must be in 1..{num_epochs} (num_epochs), got {val_epoch}")
    if options.quick:
        data = synthetic(num_users=100)
    elif name in DATASETS:
        data = known.load(options.data / known.file)
    else:
        data = SASRecDataSet(name, col_sep=None)
        name = Path(name).name.split(".")[0]
    run = Run(name, options.preset, settings, options.seed, tuple(changes), Path())
    _ = run.recipe  # checks the settings
    return replace(run, folder=options.out / name / run.name), data


def parse_changes(changes: Sequence[str], kind: type[SASREC]) -> Settings:
    """{"dropout_rate": 0.3} of ["dropout_rate=0.3"]."""
    known = [name for group in option_names(kind).values() for name in group]
    settings: Settings = {}
    first: dict[str, str] = {}
    for change in changes:
        name, _, text = change.partition("=")
        name = OLD_NAMES.get(name, name)
        if name not in known:
            raise ValueError(f"--set {change}: no setting {name!r}; there are {', '.join(known)}")
        value = _parse(text)
        if name == "bf16":  # an older spelling, in the names of runs' folders
            if not isinstance(value, bool):
                raise ValueError(f"--set {change}: must be true or false")
            name, value = "precision", "bf16" if value else "float32"
        if settings.setdefault(name, value) != value:
            raise ValueError(f"--set {change} contradicts --set {first[name]}")
        first.setdefault(name, change)
    return settings


def _parse(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def train(run: Run, data: SASRecDataSet, device: torch.device, command: str) -> None:
    """Train, or go on training, until the run is over; then measure its best model on the test items, once."""
    if (run.folder / RESULT_FILE).exists():
        return
    torch.manual_seed(run.seed)
    model = run.recipe.make_model(data.itemnum, data.usernum).to(device)
    run.folder.mkdir(parents=True, exist_ok=True)
    _write_json(run.folder / RUN_FILE, {"command": command, "settings": run.settings})
    with run.recipe.make_sampler(data, model.seq_max_len, run.seed) as sampler:
        history = run.recipe.train(
            model,
            data,
            sampler,
            verbose=sys.stderr.isatty(),
            checkpoint=run.folder,
            callbacks=[print_validation, csv_log(run.folder / METRICS_FILE)],
        )
    best_epoch = run.recipe.loop.val_epoch * (1 + int(np.argmax(history["val_ndcg"])))
    save_checkpoint(model, run.folder)
    result = {
        **measure_test(model, data),
        "best_valid_ndcg": max(history["val_ndcg"]),
        "best_epoch": best_epoch,
        "seconds_to_best": history["seconds"][best_epoch - 1],
        "epochs": len(history["loss"]),
        "seconds": history["seconds"][-1],
        "machine": machine_kind(Options(quick=False, device=device, verbose=False)),
        "dataset": run.dataset,
        "preset": run.preset,
    }
    _write_json(run.folder / RESULT_FILE, result)


def print_validation(progress: Progress) -> None:
    last = progress.epochs[-1]
    if last.val_ndcg is not None:
        validated = f"validation NDCG@10 {last.val_ndcg:.4f}"
        print(f"epoch {last.epoch}, {last.seconds:.0f} s: {validated}", flush=True)


def measure_test(model: SASREC, data: SASRecDataSet) -> dict[str, Metrics]:
    """All figures of the table: of all users, under the names in PUBLISHED, and of draws of users and negatives."""
    everybody = evaluate_repeated(model, data, NUM_DRAWS, TEST_SEED, max_users=None)
    drawn = evaluate_repeated(model, data, NUM_DRAWS, TEST_SEED)
    full = model.evaluate_full(data, ks=[10])
    figures = (everybody.hr_mean, everybody.ndcg_mean, full.hr[10], full.ndcg[10])
    return {
        "test": dict(zip(_SAMPLED + _FULL, figures, strict=True)),
        "of all users": asdict(everybody),
        "of draws": asdict(drawn),
    }


def tabulate(folder: Path) -> str:
    """A Markdown row of each finished run in a folder, its test figures beside the published ones.

    Below runs that differ in their seeds alone: their means and sample standard deviations.
    """
    groups: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"*/{RESULT_FILE}")):
        run = path.parent.name
        groups.setdefault(re.sub(r"-seed-\d+", "", run), {})[run] = json.loads(path.read_text())
    tested = {name for runs in groups.values() for run in runs.values() for name in run["test"]}
    names = [name for name in _SAMPLED + _FULL if name in tested]
    columns = [column for name in names for column in (name, "published")]
    draws = f"{NUM_DRAWS} draws of {MAX_USERS:,} users, HR@10 and NDCG@10"
    lines = [["run", *columns, draws, "best epoch", "epochs", "seconds", "machine"]]
    lines.append(["---"] * len(lines[0]))

    def add(run: str, results: Sequence[Mapping[str, Any]], ends: Sequence[object]) -> None:
        published = PUBLISHED.get((results[0]["dataset"], results[0]["preset"]), {})
        beside = [[result["test"] for result in results], [published]]
        lines.append([run, *(_cell(of, name) for name in names for of in beside), *map(str, ends)])

    for group, runs in groups.items():
        for run, result in runs.items():
            seconds = round(result["seconds"])
            ends = [result["best_epoch"], result["epochs"], seconds, result["machine"]]
            add(run, [result], [_over_draws(result), *ends])
        if len(runs) > 1:
            add(f"{group}, {len(runs)} seeds", list(runs.values()), ["–"] * 5)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(metrics: Sequence[Metrics], name: str) -> str:
    """The figure, of several their mean and standard deviation, of none a dash."""
    figures = [of[name] for of in metrics if name in of]
    spread = f" ± {stdev(figures):.4f}" if len(figures) > 1 else ""
    return f"{mean(figures):.4f}{spread}" if figures else "–"


def _over_draws(result: Mapping[str, Any]) -> str:
    """Mean and standard deviation over draws of users and negatives; a dash for a run of an earlier version."""
    if (drawn := result.get("of draws")) is None:
        return "–"
    return ", ".join(
        f"{drawn[f'{name}_mean']:.4f} ± {drawn[f'{name}_std']:.4f}" for name in ("hr", "ndcg")
    )


def _write_json(path: Path, content: object) -> None:
    replace_file(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--dataset",
        default="ml-1m",
        metavar="|".join((*DATASETS, "FILE")),
        help="which events; a FILE is trained on with the settings of ml-1m",
    )
    add("--preset", choices=PRESETS, default="sse-pt")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    add("--epochs", type=int, metavar="N", help="short for --set epochs=N")
    add("--seed", type=int, default=0, metavar="S", help="of parameters, batches, dropout, SSE")
    add("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR")
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="of the named data sets")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--quick", action="store_true", help="synthetic data, tiny sizes: a test that it runs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = make_parser().parse_args(arguments)
    try:
        run, data = run_from(options)
        command = f"python bench/reproduce.py {shlex.join(arguments)}"
        train(run, data, torch.device(options.device), command)
    except TrainingInterrupted as error:
        print(f"reproduce: {error}; call again to go on", file=sys.stderr)
        raise
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"reproduce: {error}")
    # As in the authors' README: over the seconds of training.
    logs = {path.parent.name: path for path in sorted(run.folder.parent.glob(f"*/{METRICS_FILE}"))}
    plot_curves(logs, run.folder.parent / CURVES_FILE, over="seconds")
    table = tabulate(run.folder.parent)
    (run.folder.parent / TABLE_FILE).write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()
