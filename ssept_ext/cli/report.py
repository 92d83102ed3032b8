"""Metrics and texts that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from ssept_ext.cli.runs import Source
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.evaluation.candidates import Split
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.intervals import Comparison, metric_intervals
from ssept_ext.evaluation.metrics import CUTOFF
from ssept_ext.evaluation.options import EvaluationOptions
from ssept_ext.evaluation.ranks import HeldOutRanks
from ssept_ext.evaluation.sampled import evaluate, evaluate_popularity, evaluate_valid
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ranking.given_scores import ItemScorer

Metrics = dict[str, tuple[float, float]]
"""(NDCG@10, HR@10) for each of "valid" and "test"."""


Rows = list[tuple[str, ...]]
"""Cells of a table, of which the first row has the names."""


_DEFAULTS = EvaluationOptions()


def measure(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    seed: int,
    options: EvaluationOptions = _DEFAULTS,
) -> Metrics:
    """Evaluate a model on both held-out items, among sampled negatives."""
    return {
        "valid": evaluate_valid(model, dataset, seed, **vars(options)),
        "test": evaluate(model, dataset, seed, **vars(options)),
    }


def measure_popularity(
    dataset: SASRecDataSet,
    num_neg_test: int,
    seed: int,
    options: EvaluationOptions = _DEFAULTS,
) -> Metrics:
    """Evaluate ranking by popularity, on the same candidates."""
    return {
        "valid": evaluate_popularity(dataset, seed, num_neg_test, split="valid", **vars(options)),
        "test": evaluate_popularity(dataset, seed, num_neg_test, split="test", **vars(options)),
    }


def measure_full(model: SequentialRecommender | ItemScorer, dataset: SASRecDataSet) -> Metrics:
    """Evaluate a model on both held-out items, among all items."""
    found = {
        split: evaluate_full(model, dataset, (CUTOFF,), split=split) for split in get_args(Split)
    }
    return {split: (of.ndcg[CUTOFF], of.hr[CUTOFF]) for split, of in found.items()}


def summary(source: Source, dataset: SASRecDataSet, model: SequentialRecommender, run: Path) -> str:
    """Describe data, model and run folder, at the start of training."""
    events = len(dataset.histories("all").items)
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"data   {source.get('filename', 'synthetic')}: {dataset.num_users:,} users, "
        f"{dataset.itemnum:,} items, {events:,} events\n"
        f"model  {type(model).__name__} on {model.device}: {parameters:,} parameters\n"
        f"run    {run}"
    )


def print_results(
    popularity: Metrics, model: SequentialRecommender, metrics: Metrics, among_all: bool
) -> None:
    """Print a table of the model's metrics and those of popularity, among all items or sampled negatives."""
    negatives = "all items" if among_all else f"{model.num_neg_test:,} sampled negatives"
    print(f"\nranked among {negatives}")
    print(f"{'':<10} {'valid':^16}   {'test':^16}")
    print(f"{'':<10} {'HR@10':>7} {'NDCG@10':>8}   {'HR@10':>7} {'NDCG@10':>8}")
    for name, row in (("popularity", popularity), (type(model).__name__, metrics)):
        cells = (f"{hr:>7.4f} {ndcg:>8.4f}" for ndcg, hr in (row["valid"], row["test"]))
        print(f"{name:<10} {'   '.join(cells)}")


def what_is_ranked(ranks: HeldOutRanks) -> str:
    """Say of whom the metrics are, in the line above a table."""
    num_users, what = len(np.unique(ranks.users)), f"{ranks.split} item"
    if ranks.targets != "next":
        what = f"{len(ranks.users):,} {ranks.split} events"
    after = {
        "next": "",
        "all": ", each after the events before the part",
        "successive": ", each after all events before it",
    }
    return (
        f"{what} of {num_users:,} users{after[ranks.targets]}, ranked among all {ranks.num_items:,} items but those "
        f"of the input, with 95 % intervals over users\n"
    )


def ranked(models: Mapping[str, HeldOutRanks], ks: Sequence[int], seed: int) -> Rows:
    """Return a table of metrics of models, by their names: a row for each cut-off, and one for all ranks."""
    rows: Rows = [("", "k", "HR", "NDCG", "MRR", "coverage")]
    for name, ranks in models.items():
        found = metric_intervals(ranks, ks, seed=seed)
        coverage = ranks.metrics(ks).coverage
        for k in ks:
            cells = (str(found[f"{metric}@{k}"]) for metric in rows[0][2:5])
            rows.append((name, str(k), *cells, f"{coverage[k]:.4f}"))
        rows.append((name, "all", "", "", str(found["MRR"]), ""))
    return rows


def compared(runs: tuple[str, str], comparisons: Mapping[str, Comparison]) -> Rows:
    """Return a table of the metrics of two runs, and of their differences."""
    rows: Rows = [("", *runs, "difference")]
    for name, found in comparisons.items():
        mean, low, high = (f"{value:+.4f}" for value in found.difference)
        means = (f"{value:.4f}" for value in found[:2])
        rows.append((name, *means, f"{mean} [{low}, {high}]"))
    return rows


def print_columns(rows: Rows) -> None:
    """Print rows of cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
