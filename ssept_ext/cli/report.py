"""Metrics and texts that commands print."""

from __future__ import annotations

from pathlib import Path

from ssept_ext.cli.runs import Source
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.evaluation.options import EvaluationOptions
from ssept_ext.evaluation.sampled import evaluate, evaluate_popularity, evaluate_valid
from ssept_ext.network.recommender import SequentialRecommender

Metrics = dict[str, tuple[float, float]]
"""(NDCG@10, HR@10) for each of "valid" and "test"."""


_DEFAULTS = EvaluationOptions()


def measure(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    seed: int,
    options: EvaluationOptions = _DEFAULTS,
) -> Metrics:
    """Evaluate a model on both held-out items."""
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


def print_results(popularity: Metrics, model: SequentialRecommender, metrics: Metrics) -> None:
    """Print a table of the model's metrics and those of popularity."""
    print(f"\n{'':<10} {'valid':^16}   {'test':^16}")
    print(f"{'':<10} {'HR@10':>7} {'NDCG@10':>8}   {'HR@10':>7} {'NDCG@10':>8}")
    for name, row in (("popularity", popularity), (type(model).__name__, metrics)):
        cells = (f"{hr:>7.4f} {ndcg:>8.4f}" for ndcg, hr in (row["valid"], row["test"]))
        print(f"{name:<10} {'   '.join(cells)}")
