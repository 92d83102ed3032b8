"""Time RePlay's SASRec and ours: a training step with a softmax over all items, a live history, and all users of ML-1M.

    pip install "replay-rec[torch]==0.22.0"
    python bench/beside_replay.py

Both have two blocks, 50 features, 200 events at most and dropout .2, and learn by Adam. RePlay's network is called
directly, on padded tensors that are ready: its data loaders and Lightning would take more. It hides the newest 200
items of a user, ours all of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from measure import OURS, compare, heading, options_from, parser, print_title
from serving import K
from serving_peers import NUM_HISTORIES, in_turn
from torch import Tensor
from train_step import step_of
from workload import DIM, DROPOUT, load

from ssept_ext import SASREC

USERS_AT_A_TIME, REPLAY = 256, "RePlay"


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    try:
        replay = importlib.import_module("replay_model")
    except ModuleNotFoundError as error:
        sys.exit(f'beside_replay: {error}; pip install "replay-rec[torch]==0.22.0"')
    print_title(__doc__, options)
    workload = load("ML-1M", options.quick)
    data, length = workload.dataset, workload.seq_max_len
    batch = workload.batch(options.device)
    ours = SASREC(
        item_num=data.itemnum,
        seq_max_len=length,
        embedding_dim=DIM,
        conv_dims=[DIM, DIM],
        dropout_rate=DROPOUT,
    )
    peer = replay.Replay(data.itemnum, DIM, length, DROPOUT)

    heading(f"A training step with a softmax over all items, {len(batch.seq)} users of ML-1M")
    seed = torch.ones(1, dtype=torch.int64)
    steps = {
        OURS: step_of(ours, lambda: ours.training_loss(batch.packed, loss="softmax", seed=seed)),
        REPLAY: peer.step(batch.seq, batch.pos),
    }
    compare(steps, {}, options)

    events = data.histories("all")
    padded = padded_on_the_left(events.items, events.offsets, length)
    rows = np.random.default_rng(0).integers(len(padded), size=NUM_HISTORIES)
    lists = [padded[row][padded[row] > 0].tolist() for row in rows]
    heading(f"{NUM_HISTORIES} live histories, one by one, k={K}, {data.itemnum:,} items")
    answers = {
        OURS: in_turn(lambda i: ours.recommend({1: lists[i]}, k=K)),
        REPLAY: in_turn(lambda i: peer.best(padded[rows[i]][None], K)),
    }
    compare(answers, {}, options)

    heading(f"All {len(padded):,} users, k={K}")
    everyone = {
        OURS: lambda: ours.recommend(data, k=K),
        REPLAY: lambda: [peer.best(part, K) for part in padded.split(USERS_AT_A_TIME)],
    }
    compare(everyone, {}, options)


def padded_on_the_left(items: np.ndarray, offsets: np.ndarray, length: int) -> Tensor:
    """(R, length) int64: the newest items of each history, 0 where there are fewer."""
    rows = torch.zeros(len(offsets) - 1, length, dtype=torch.int64)
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        newest = torch.from_numpy(items[max(start, end - length) : end])
        rows[row, length - len(newest) :] = newest
    return rows


if __name__ == "__main__":
    main()
