"""Time RecTools' SASRec and our SSE-PT: answers to one live history, and to all users of ML-1M, seen items hidden.

    pip install "ssept_ext[peers]"
    python bench/serving_peers.py

RecTools' model has the settings that its authors recommend (64 features, two blocks, 200 events), ours 50 + 50. Both
are hardly trained, which costs them nothing. RecTools answers from a data set of its own, which is given to it ready,
or is made of the history first, as a live one needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

import numpy as np
from measure import OURS, compare, heading, options_from, parser, print_title
from serving import K, model_of
from workload import load

NUM_HISTORIES = 50


def in_turn(answer: Callable[[int], object]) -> Callable[[], None]:
    """A call that asks for `NUM_HISTORIES` histories, one by one."""

    def call() -> None:
        for row in range(NUM_HISTORIES):
            answer(row)

    return call


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

    rows = np.random.default_rng(0).integers(len(events.users), size=NUM_HISTORIES)
    asked = [events.of(events.users[[row]]) for row in rows]
    lists = [history.items.tolist() for history in asked]
    ready = [peer.data_set(history) for history in asked]
    heading(f"{NUM_HISTORIES} live histories, one by one, k={K}, {data.itemnum:,} items")
    answers = {
        OURS: in_turn(lambda i: model.recommend({1: lists[i]}, k=K)),
        "RecTools, from a data set": in_turn(lambda i: peer.recommend(asked[i].users, ready[i], K)),
        "RecTools, from a history": in_turn(
            lambda i: peer.recommend(asked[i].users, peer.data_set(asked[i]), K)
        ),
    }
    compare(answers, {}, options)

    whole = peer.data_set(events)
    heading(f"All {len(events.users):,} users, k={K}")
    everyone = {
        OURS: lambda: model.recommend(data, k=K),
        "RecTools": lambda: peer.recommend(events.users, whole, K),
    }
    compare(everyone, {}, options)


if __name__ == "__main__":
    main()
