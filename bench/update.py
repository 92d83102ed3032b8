"""Update a model with the last days of a data set, and compare it with one that is trained on everything from scratch.

    python bench/update.py --days 7
    python bench/update.py --days 28 --preset sse-pt-sampled-softmax --update replay=3 new_items=mean

The table has full-ranking NDCG@10 of the validation items, the last but one of each user: of all users, of those with
events in the last days, and of the others; and the CPU time of the training, relative to that from scratch. "before" is
the model of the earlier events. It knows neither new users nor new items, and is measured on its own data.
"""

from __future__ import annotations

import argparse
import ast
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from data_sets import kind_of
from workload import DATA

from ssept_ext import SASREC, IdMap, Interactions, SASRecDataSet
from ssept_ext.data.sources.columns import Codes, RawEvents
from ssept_ext.data.sources.formats import read_source
from ssept_ext.training.presets import PRESETS

Row = tuple[float, ...]
"""NDCG@10 of all users, of those with new events, and of the others; and seconds."""

_DAY = 86_400
_QUICK = {"seq_max_len": 8, "embedding_dim": 4, "num_epochs": 2}


def between(events: RawEvents, start: float, end: float) -> Interactions:
    """The events from one time up to another."""
    assert events.times is not None
    kept = (events.times >= start) & (events.times < end)
    users, items = (Codes(x.codes[kept], x.ids) for x in (events.users, events.items))
    return Interactions.from_events(RawEvents(users, items, events.times[kept]))


def ndcg(model: SASREC, dataset: SASRecDataSet, users: IdMap | None = None) -> float:
    """NDCG@10 of the validation items, of some users or all."""
    if users is not None and not len(users):
        return math.nan
    if users is not None:
        assert dataset.user_ids is not None
        of = dataset.histories("all").of(np.sort(dataset.user_ids.encode(users.raw)))
        part = SASRecDataSet(histories=of)
        part.user_ids, part.item_ids = dataset.user_ids, dataset.item_ids
        part.itemnum = dataset.itemnum
        dataset = part
    return model.evaluate_full(dataset, ks=[10], split="valid").ndcg[10]


def compare(
    options: argparse.Namespace, events: RawEvents, seed: int, training: dict[str, Any]
) -> dict[str, Row]:
    """Train the three models with one seed."""
    assert events.times is not None
    end = float(events.times.max()) + 1
    earlier = between(events, -np.inf, end - options.days * _DAY)
    last = between(events, end - options.days * _DAY, np.inf)
    everything = between(events, -np.inf, np.inf)
    kind, sizes = kind_of(options.preset), {"seq_max_len": options.seq_max_len}
    sizes |= {"embedding_dim": options.embedding_dim}
    fitting = {"preset": options.preset, "seed": seed, "verbose": False, **training}

    model, first = timed(lambda: kind.fit(earlier, **fitting, **sizes))
    before = ndcg(model, earlier.to_dataset())
    _, seconds = timed(lambda: model.update(last, **fitting, **options.update))
    scratch, whole = timed(lambda: kind.fit(everything, **fitting, **sizes))

    found = set(last.user_ids.raw.tolist())
    others = [user for user in everything.user_ids.raw.tolist() if user not in found]
    groups = (None, last.user_ids, IdMap(others, "user"))
    rows = {"before": (before, math.nan, math.nan, first / whole)}
    for name, trained, spent in (("update", model, seconds), ("from scratch", scratch, whole)):
        assert trained.known is not None
        data = trained.known.to_dataset()
        parts = [ndcg(trained, data, users) for users in groups]
        rows[name] = (*parts, spent / whole)
    return rows


def timed(train: Callable[[], Any]) -> tuple[Any, float]:
    """What a training returns, and its CPU seconds."""
    start = time.process_time()
    made = train()
    return made, time.process_time() - start


def cell(figures: Sequence[float]) -> str:
    if np.isnan(figures).any():
        return "–"
    return f"{mean(figures):.4f}" + (f" ± {stdev(figures):.4f}" if len(figures) > 1 else "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / "ml-100k.u.data.gz")
    parser.add_argument("--days", type=float, default=7, help="length of the update's events")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", choices=PRESETS, default="sasrec-sampled-softmax")
    parser.add_argument("--num-epochs", type=int, default=60)
    parser.add_argument("--seq-max-len", type=int, default=50)
    parser.add_argument("--embedding-dim", type=int, default=50)
    parser.add_argument(
        "--update", nargs="+", default=[], metavar="NAME=VALUE", help="options of update"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, a tiny model")
    options = parser.parse_args(argv)
    pairs = (change.split("=", 1) for change in options.update)
    options.update = {name: _value(text) for name, text in pairs}
    if options.quick:
        options.seeds = options.seeds[:1]
        vars(options).update(_QUICK)
    torch.set_num_threads(1)
    _, _, events = read_source(options.data)
    found = [
        compare(options, events, seed, {"num_epochs": options.num_epochs}) for seed in options.seeds
    ]
    print("| model | NDCG@10 | with new events | others | CPU time |")
    print("|---|---|---|---|---|")
    for name in found[0]:
        columns = zip(*(rows[name] for rows in found), strict=True)
        *figures, share = map(list, columns)
        print(f"| {name} | {' | '.join(map(cell, figures))} | {mean(share):.3f} |")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
