"""Benchmark `WarpSampler` on one thread, against Python loops as in recommenders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from baselines.eager import draw_batch
from measure import (
    OURS,
    Options,
    copy_floor,
    heading,
    options_from,
    parser,
    print_comparison,
    print_title,
    side_by_side,
)
from workload import BATCH_SIZE, load


def compare(options: Options) -> None:
    workload = load("ML-1M", options.quick)
    data = workload.dataset
    batch = workload.batch(options.device)
    rng = np.random.RandomState(0)
    # For each event: read it; write it, its column, its positive and its negative.
    num_bytes = 5 * 8 * len(batch.packed.items)
    with workload.sampler() as sampler:
        times = side_by_side(
            {
                OURS: sampler.next_packed,
                "ours, padded": sampler.next_batch,
                "Python loops": lambda: draw_batch(
                    data.user_train,
                    data.usernum,
                    data.itemnum,
                    BATCH_SIZE,
                    workload.seq_max_len,
                    rng,
                ),
            },
            {"a copy of the bytes it must move": copy_floor(num_bytes, options)},
            options,
        )
    heading(workload.describe(batch))
    print_comparison(times, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        print_title(__doc__, options)
        compare(options)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
