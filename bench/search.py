"""Search for settings by full-ranking validation NDCG@10, without looking at the test set.

    python bench/search.py --dataset ml-100k --preset sse-pt-sampled-softmax --trials 20
    python bench/search.py --dataset ml-100k --preset sse-pt-sampled-softmax --trials 20 --over learning_rate num_blocks

The study is one file, DIR/DATASET-PRESET.journal: call again for more trials, from the same file. A trial is one
training, stopped early where it is below the median of the others at the same epoch. Prints the best trials, and the
command of reproduce.py that trains the best one's settings with other seeds and scores the test set, once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from data_sets import DATASETS, Settings, kind_of
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from reproduce import PRESETS, parse_changes
from workload import SHARED

from ssept_ext import SASRecDataSet
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training.callbacks import Progress
from ssept_ext.training.recipe import Recipe

SPACE: dict[str, Callable[[optuna.Trial, str], Any]] = {
    "architecture": lambda trial, name: trial.suggest_categorical(
        name, ["original", "pre-ln", "gated"]
    ),
    "num_blocks": lambda trial, name: trial.suggest_int(name, 1, 4),
    "attention_num_heads": lambda trial, name: trial.suggest_categorical(name, [1, 2]),
    "embedding_dim": lambda trial, name: trial.suggest_int(name, 32, 128, step=32),
    "user_embedding_dim": lambda trial, name: trial.suggest_categorical(name, [8, 16, 32, 64]),
    "dropout_rate": lambda trial, name: trial.suggest_float(name, 0.1, 0.5),
    "learning_rate": lambda trial, name: trial.suggest_float(name, 5e-4, 8e-3, log=True),
    "num_negatives": lambda trial, name: trial.suggest_categorical(name, [64, 128, 256]),
    "sse_item_prob": lambda trial, name: trial.suggest_float(name, 0.0, 0.2),
    "sse_user_prob": lambda trial, name: trial.suggest_float(name, 0.5, 0.95),
    "window_sampling_prob": lambda trial, name: trial.suggest_float(name, 0.0, 0.6),
    "position_bias": lambda trial, name: trial.suggest_categorical(name, [False, True]),
    "time_bias": lambda trial, name: trial.suggest_categorical(name, [False, True]),
}
"""What may be searched over, with the ranges of the sources that docs/reproducing.md names."""
_OF_USERS = ("user_embedding_dim", "sse_user_prob")
_MEASURE: Settings = {"validation": "full", "restore_best": True, "val_epoch": 5}
_QUICK: Settings = {"seq_max_len": 10, "num_epochs": 4, "val_epoch": 2, "warmup_steps": 0}
NUM_SHOWN = 10


def space_of(options: argparse.Namespace, data: SASRecDataSet) -> list[str]:
    """The names to search over: those asked for, or all that the model and the data have."""
    if options.over:
        return list(options.over)
    missing = () if kind_of(options.preset).__name__ == "SSEPT" else _OF_USERS
    if data.histories("train").times is None:
        missing = (*missing, "time_bias")
    return [name for name in SPACE if name not in missing]


def search(options: argparse.Namespace) -> optuna.Study:
    """Run the trials; returns the study, with those of earlier calls."""
    kind = kind_of(options.preset)
    if options.quick:
        data, settings = synthetic(num_users=40), PRESETS[options.preset] | _MEASURE | _QUICK
    else:
        known = DATASETS[options.dataset]
        data = known.load(options.data / known.file)
        settings = known.settings(options.preset, PRESETS[options.preset]) | _MEASURE
    settings = settings | parse_changes(options.set, kind)
    names = space_of(options, data)

    def objective(trial: optuna.Trial) -> float:
        chosen = settings | {name: SPACE[name](trial, name) for name in names}
        return validated(Recipe.from_options(kind, chosen), data, options.seed, trial)

    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{options.dataset}-{options.preset}.journal"
    study = optuna.create_study(
        direction="maximize",
        study_name=options.preset,
        storage=JournalStorage(JournalFileBackend(str(file))),
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=20),
        load_if_exists=True,
    )
    study.optimize(objective, n_trials=options.trials)
    return study


def validated(recipe: Recipe[Any], data: SASRecDataSet, seed: int, trial: optuna.Trial) -> float:
    """The best validation of a training; an `optuna.TrialPruned` ends one that is worse than others were by then."""
    torch.manual_seed(seed)
    model = recipe.make_model(data.itemnum, data.usernum)

    def is_hopeless(progress: Progress) -> bool:
        last = progress.epochs[-1]
        if last.val_ndcg is None:
            return False
        trial.report(last.val_ndcg, last.epoch)
        return trial.should_prune()

    with recipe.make_sampler(data, model.seq_max_len, seed) as sampler:
        history = recipe.train(model, data, sampler, verbose=False, callbacks=[is_hopeless])
    trial.set_user_attr("seconds", history["seconds"][-1])
    if len(history["loss"]) < recipe.loop.num_epochs and trial.should_prune():
        raise optuna.TrialPruned
    return max(history["val_ndcg"])


def report(study: optuna.Study, options: argparse.Namespace) -> str:
    """The best trials as a Markdown table, and the command that tests the best one's settings."""
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    ranked = sorted(finished, key=lambda trial: -(trial.value or 0))[:NUM_SHOWN]
    names = sorted({name for trial in ranked for name in trial.params}, key=[*SPACE].index)
    lines = [["trial", "validation NDCG@10", "seconds", *names]]
    lines.append(["---"] * len(lines[0]))
    for trial in ranked:
        values = [_text(trial.params[name]) if name in trial.params else "–" for name in names]
        seconds = f"{trial.user_attrs['seconds']:.0f}"
        lines.append([str(trial.number), f"{trial.value:.4f}", seconds, *values])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    best = {name: _text(value) for name, value in ranked[0].params.items()}
    shared = {"validation": "full", **dict(change.split("=", 1) for change in options.set)}
    changes = [part for x in {**shared, **best}.items() for part in ("--set", "=".join(x))]
    dataset = ["--dataset", options.dataset, "--preset", options.preset]
    command = shlex.join(["python", "bench/reproduce.py", *dataset, *changes, "--seed", "1"])
    return f"{table}{len(finished)} of {len(study.trials)} trials ran to their end\n{command}\n"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="ml-1m")
    add("--preset", choices=PRESETS, default="sse-pt-sampled-softmax", help="where to start from")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change it for all trials")
    add("--over", nargs="+", choices=SPACE, help="what to search over (default: all that applies)")
    add("--trials", type=int, default=20, metavar="N", help="how many more")
    add("--seed", type=int, default=0, metavar="S", help="of parameters, batches, dropout, SSE")
    add("--out", type=Path, default=Path("runs/search"), metavar="DIR")
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="of the data sets")
    add("--quick", action="store_true", help="synthetic data, tiny sizes: a test that it runs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    try:
        study = search(options)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"search: {error}")
    print(report(study, options), end="")


if __name__ == "__main__":
    main()
