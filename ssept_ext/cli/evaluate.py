"""The commands that measure runs: `evaluate` and `compare`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

from ssept_ext.cli.options import add_data, add_device, add_fields, add_run, column_file, number
from ssept_ext.cli.report import (
    compared,
    measure,
    measure_popularity,
    print_columns,
    print_results,
    ranked,
    what_is_ranked,
)
from ssept_ext.cli.runs import open_run
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.evaluation.baselines import ItemNeighbours, Popularity
from ssept_ext.evaluation.candidates import Split
from ssept_ext.evaluation.full import evaluate_ranks
from ssept_ext.evaluation.intervals import KS, compare_ranks
from ssept_ext.evaluation.options import EvaluationOptions
from ssept_ext.evaluation.ranks import HeldOutRanks
from ssept_ext.evaluation.targets import Targets
from ssept_ext.models import SASREC
from ssept_ext.network.identity import in_ids_of
from ssept_ext.ranking.given_scores import ItemScorer
from ssept_ext.utils.options import NOT_NEGATIVE, POSITIVE, Range

_OF_SAMPLES = ("exclude", "max_users")
_OF_RANKS = ("k", "part", "targets", "ranks", "baselines", "recent_days")
_RECENT_SHARE = 0.1


def evaluate(options: argparse.Namespace) -> int:
    """Measure a trained model among all items, or among sampled ones."""
    _check_flags(options)
    model, dataset, trained_with, _ = open_run(options)
    seed = trained_with["seed"] if options.seed is None else options.seed
    if options.sampled:
        names = [field.name for field in fields(EvaluationOptions)]
        chosen = EvaluationOptions(**{n: getattr(options, n) for n in names if n in options})
        popularity = measure_popularity(dataset, model.num_neg_test, seed, chosen)
        metrics = measure(model, dataset, seed, chosen)
        print_results(popularity, model, metrics, among_all=False)
        return 0
    ranks, ks = _ranks(model, dataset, options)
    if options.ranks is not None:
        ranks.save(options.ranks)
    measured = {}
    if options.baselines:
        for name, baseline in _baselines(dataset, options.recent_days):
            measured[name], _ = _ranks(baseline, dataset, options)
    print(what_is_ranked(ranks))
    print_columns(ranked(measured | {type(model).__name__: ranks}, ks, seed))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compare two trained models user by user."""
    runs = (options.first, options.second)
    opened = [open_run(argparse.Namespace(**{**vars(options), "run": run})) for run in runs]
    (first, data, *_), (second, same_data, *_) = opened
    _check_same_data(runs, first, data, same_data)
    ranks, ks = _ranks(first, data, options)
    others, _ = _ranks(second, same_data, options)
    print(what_is_ranked(ranks))
    print_columns(compared(runs, compare_ranks(ranks, others, ks, seed=options.seed)))
    return 0


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add_run(parser)
    add_data(parser, "the data it was trained on")
    _add_ranking_options(parser)
    parser.add_argument(
        "--ranks",
        type=column_file,
        metavar="FILE",
        help="also write the rank of each user's item to a .csv or .parquet file (default: none)",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also rank by popularity, by recent popularity if there are times, and by item-to-item neighbours",
    )
    parser.add_argument(
        "--recent-days",
        help="days before the last training event in which recent popularity counts, if times are in seconds "
        "(default: those of the last tenth of the training events)",
        **number(float, POSITIVE),
    )
    parser.add_argument(
        "--seed",
        help="of the resamples of users and, with --sampled, the users and negatives (default: the run's)",
        **number(int, NOT_NEGATIVE),
    )
    group = parser.add_argument_group("among sampled items")
    group.add_argument(
        "--sampled",
        action="store_true",
        help="instead, rank valid and test item among sampled negatives, as recommenders does, beside popularity",
    )
    add_fields(group, EvaluationOptions, vars(EvaluationOptions()), _OF_SAMPLES)
    add_device(parser)


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare`."""
    add_run(parser, dest="first")
    add_run(parser, dest="second")
    add_data(parser, "the data they were trained on")
    _add_ranking_options(parser)
    parser.add_argument(
        "--seed", default=0, help="of the resamples of users", **number(int, NOT_NEGATIVE)
    )
    add_device(parser)


def _add_ranking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-k",
        nargs="+",
        help=f"cut-offs of the metrics (default: {' '.join(map(str, KS))})",
        **number(int, Range(1)),
    )
    parser.add_argument(
        "--part",
        choices=get_args(Split),
        help="the part of the data whose events are to be found (default: test)",
    )
    parser.add_argument(
        "--targets",
        choices=get_args(Targets),
        help="which events of the part: each user's first; all, given the events before the part; or all, each given "
        "all events before it (default: next)",
    )
    add_fields(parser, EvaluationOptions, vars(EvaluationOptions()), ["ties"])


def _check_flags(options: argparse.Namespace) -> None:
    """Raise a ValueError if a flag is given that the chosen ranking does not take."""
    if options.sampled:
        for name in _OF_RANKS:
            if getattr(options, name):
                raise ValueError(
                    f"{_flag(name)} is for the ranking of all items, not for --sampled"
                )
    else:
        for name in _OF_SAMPLES:
            if name in options:
                raise ValueError(f"{_flag(name)} is for --sampled")
    if options.recent_days is not None and not options.baselines:
        raise ValueError("--recent-days is for --baselines")


def _flag(name: str) -> str:
    return "-k" if name == "k" else f"--{name.replace('_', '-')}"


def _baselines(
    dataset: SASRecDataSet, recent_days: float | None
) -> Iterator[tuple[str, ItemScorer]]:
    """Make rankings to compare a model with, one after another."""
    yield "popularity", Popularity(dataset)
    if recent_days is not None:
        yield "recent popularity", Popularity(dataset, last_days=recent_days)
    elif dataset.histories("train").times is not None:
        yield "recent popularity", Popularity(dataset, last_share=_RECENT_SHARE)
    yield "neighbours", ItemNeighbours(dataset)


def _ranks(
    model: SASREC | ItemScorer, dataset: SASRecDataSet, options: argparse.Namespace
) -> tuple[HeldOutRanks, list[int]]:
    """Rank all items as the flags say; return the cut-offs, too."""
    ks = sorted(set(options.k or KS))
    chosen = {"ties": options.ties} if "ties" in options else {}
    which: dict[str, Any] = {"split": options.part or "test", "targets": options.targets or "next"}
    return evaluate_ranks(model, dataset, max(ks), **which, **chosen), ks


def _check_same_data(
    runs: tuple[str, str], model: SASREC, data: SASRecDataSet, others: SASRecDataSet
) -> None:
    """Raise a ValueError that says how the data of two runs, or their splits, differ. The model is the first's."""
    try:
        # In the same numbers, if raw ids tell them.
        one, other = Fingerprint.of(data), Fingerprint.of(in_ids_of(model, others))
        same = ("histories", "training", "validation")
        if any(getattr(one, name) != getattr(other, name) for name in same):
            raise ValueError(one.against(other))
    except ValueError as error:
        raise ValueError(f"{' and '.join(runs)} cannot be compared by user: {error}") from error
