"""Time answers of RecTools' SASRec and of ours: to one live history, and to all users of ML-1M, seen items hidden.

    pip install "ssept_ext[peers]"
    python bench/serving_peers.py --verbose

RecTools' model has the settings that its authors recommend (64 features, two blocks, 200 events), ours 50 + 50. Both
are hardly trained, which costs them nothing. RecTools answers from a data set of its own, which is given to it ready,
or is made of the history first, as a live one needs.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from measure import heading, options_from, parser, print_table, print_title
from serving import K, Latencies, model_of, timed
from workload import load

from ssept_ext.data.histories import Histories

NUM_HISTORIES, NUM_WARM_UPS, NUM_ROUNDS = 100, 5, 3
"""Histories that are asked for one by one, and rounds of all users in turn."""


def one_by_one(answer: Callable[[Histories], object], asked: Sequence[Histories]) -> Latencies:
    return Latencies(timed(answer, asked).seconds[NUM_WARM_UPS:])


def seconds_of(answer: Callable[[], object]) -> float:
    start = time.perf_counter()
    answer()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    try:
        peers = importlib.import_module("rectools_models")
    except ModuleNotFoundError as error:
        sys.exit(f'serving_peers: {error}; pip install "ssept_ext[peers]"')
    print_title(__doc__, options)
    data = load("ML-1M", options.quick).dataset
    events = data.histories("all")
    peer = peers.make("rectools-sasrec-softmax", events, data.itemnum, 1, options.quick)
    peer.train(0, lambda *_: True)  # for an epoch
    model = model_of(data.itemnum, options.quick, data.usernum)
    users = np.random.default_rng(0).permutation(events.users)
    asked = [events.of(users[i : i + 1]) for i in range(min(NUM_HISTORIES, len(users)))]
    ready = {id(history): peer.data_set(history) for history in asked}
    answers: dict[str, Callable[[Histories], object]] = {
        "ours": lambda history: model.recommend({1: history.items.tolist()}, k=K),
        "RecTools, from a data set": lambda x: peer.recommend(x.users, ready[id(x)], K),
        "RecTools, from a history": lambda x: peer.recommend(x.users, peer.data_set(x), K),
    }
    found = {name: one_by_one(answer, asked) for name, answer in answers.items()}
    heading(f"One live history, k={K}, {data.itemnum:,} items")
    rows = [
        [name, f"{x.at(0.5) / found['ours'].at(0.5):.1f}", f"{1e3 * x.at(0.5):.2f}"]
        for name, x in found.items()
    ]
    print_table(["", "median / ours", "median, ms"], rows)
    whole = peer.data_set(events)
    everyone: dict[str, Callable[[], object]] = {
        "ours": lambda: model.recommend(data, k=K),
        "RecTools": lambda: peer.recommend(events.users, whole, K),
    }
    rounds = [[seconds_of(answer) for answer in everyone.values()] for _ in range(NUM_ROUNDS)]
    seconds = np.median(rounds, 0)
    heading(f"All {len(users):,} users, k={K}, median of {NUM_ROUNDS} rounds")
    rows = [
        [name, f"{x / seconds[0]:.1f}", f"{x:.2f}"]
        for name, x in zip(everyone, seconds, strict=True)
    ]
    print_table(["", "time / ours", "seconds"], rows)


if __name__ == "__main__":
    main()
