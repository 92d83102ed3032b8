"""What each part of the best model is worth: train without it or with another in its place, three seeds each.

    python bench/ablation.py --dataset ml-100k
    python bench/ablation.py --dataset ml-100k --only "pre-ln blocks" --seeds 5

Every variant changes one thing of the first. Epochs are chosen by the full-ranking NDCG@10 of the validation items, of
which the table has the mean and the standard deviation over seeds, beside those of the test items. Runs are those of
reproduce.py, in folders of their own: call an interrupted ablation again, and it goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import reproduce
import torch
from data_sets import DATASETS
from workload import SHARED

PRESET, WITHOUT_USERS = "sse-pt-sampled-softmax", "sasrec-sampled-softmax"
# Rate and dropout are the best of five trials of bench/search.py on ML-100K.
COMMON = (
    *("validation=full", "seq_max_len=100", "num_epochs=80", "val_epoch=5", "warmup_steps=50"),
    *("learning_rate=0.0023", "dropout_rate=0.37"),
)
SETTINGS = (*COMMON, "embedding_dim=64", "user_embedding_dim=16")
BIASES = ("position_bias=true", "time_bias=true")
NO_SSE = ("sse_user_prob=0.0", "sse_item_prob=0.0", "sse_joint=false")

VARIANTS: dict[str, tuple[str, ...]] = {
    "SSE-PT, sampled softmax": (),
    "without SSE": NO_SSE,
    "without user vectors": (),  # of another class, of the same width
    "256 negatives": ("num_negatives=256",),
    "pre-ln blocks": ("architecture=pre-ln",),
    "gated blocks": ("architecture=gated",),
    "4 blocks": ("num_blocks=4",),
    "4 gated blocks": ("architecture=gated", "num_blocks=4"),
    "position bias": ("position_bias=true",),
    "time bias": ("time_bias=true",),
    "both biases": BIASES,
    "gated blocks, time bias": ("architecture=gated", "time_bias=true"),
    "gated blocks, both biases": ("architecture=gated", *BIASES),
    "cosine, temperature .05": ("cosine_temperature=0.05",),
    "own output table": ("tie_item_embeddings=false",),
}
"""What is changed, by the name of the row; times of events are read by those with a time bias only."""


def arguments_of(variant: str, seed: int, options: argparse.Namespace) -> list[str]:
    """Of reproduce.py."""
    if variant == "without user vectors":
        preset, settings = WITHOUT_USERS, (*COMMON, "embedding_dim=80")
    else:
        preset, settings = PRESET, SETTINGS
    changes = [*settings, *options.set, *VARIANTS[variant]]
    if options.quick:
        changes = [*options.set, *VARIANTS[variant]]
    given = ["--quick"] if options.quick else ["--dataset", options.dataset]
    given += ["--data", str(options.data), "--preset", preset, "--seed", str(seed)]
    return [*given, *(part for change in changes for part in ("--set", change))]


def result_of(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run reproduce.py unless it has been, and read what it measured."""
    # A folder a variant: names that hold all that is set would be too long for a file system.
    out = options.out / variant.replace(" ", "-")
    arguments = [*arguments_of(variant, seed, options), "--out", str(out)]
    chosen = reproduce.make_parser().parse_args(arguments)
    run, data = reproduce.run_from(chosen)
    folder = run.folder.parent / f"seed-{seed}"
    command = f"python bench/reproduce.py {shlex.join(arguments)}"
    reproduce.train(replace(run, folder=folder), data, torch.device("cpu"), command)
    result: dict[str, Any] = json.loads((folder / reproduce.RESULT_FILE).read_text())
    return result


def row_of(variant: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """Means, with standard deviations where there is more than one seed."""

    def cell(values: Sequence[float]) -> str:
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        return f"{mean(values):.4f}{spread}"

    valid = [result["best_valid_ndcg"] for result in results]
    tested = [[result["test"][f"full {x}"] for result in results] for x in ("NDCG@10", "HR@10")]
    seconds = mean(result["seconds"] for result in results)
    return [variant, cell(valid), *map(cell, tested), f"{seconds:.0f}"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="ml-100k")
    add("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="some of the rows")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change it for all rows")
    add("--seeds", type=int, default=3, metavar="N", help="0 up to N - 1")
    add("--out", type=Path, default=Path("runs/ablation"), metavar="DIR")
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="of the data sets")
    add("--quick", action="store_true", help="synthetic data, tiny sizes: a test that it runs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    lines = [["", "validation NDCG@10", "test NDCG@10", "test HR@10", "seconds"], ["---"] * 5]
    try:
        for variant in options.only:
            seeds = range(options.seeds)
            lines.append(row_of(variant, [result_of(variant, seed, options) for seed in seeds]))
            print(f"{variant}: {lines[-1][1]}", file=sys.stderr, flush=True)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"ablation: {error}")
    print("".join(f"| {' | '.join(line)} |\n" for line in lines), end="")


if __name__ == "__main__":
    main()
