"""Benchmark `evaluate` on every user, against an eager baseline that evaluates as recommenders does.

The baseline draws candidates in Python, in batches of 256 users, and computes every position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from baselines import eager
from measure import (
    OURS,
    Options,
    heading,
    large_gemm_floor,
    options_from,
    parser,
    print_comparison,
    print_title,
    side_by_side,
)
from workload import DIM, encoder_flops, load

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.evaluation.sampled import evaluate


def compare(options: Options) -> None:
    workload = load("ML-1M", options.quick)
    data = workload.dataset
    model = workload.model(num_neg_test=20 if options.quick else 100).to(options.device)
    baseline = eager.EagerSSEPT(model.config).to(options.device)
    baseline.load_state_dict(model.state_dict())
    inputs = data.histories("train", data.users_with("test"))
    lengths = (torch.from_numpy(inputs.offsets).diff() + 1).clamp(max=workload.seq_max_len)
    # Another one, because dicts that were handed out would take the place of our arrays.
    data_in_dicts = SASRecDataSet(histories=data.histories("all"))
    flops = encoder_flops(lengths, model.config, last_only=True)
    times = side_by_side(
        {
            OURS: lambda: evaluate(model, data, seed=0),
            "eager baseline": lambda: eager.evaluate(
                baseline, data_in_dicts, 0, model.num_neg_test
            ),
        },
        {"its matrix products at the rate of large ones": large_gemm_floor(flops, options)},
        options,
        budget=60,
    )
    heading(
        f"{workload.name}, T={workload.seq_max_len}, d={DIM}+{DIM}, {workload.source}; "
        f"{len(lengths)} users, {model.num_neg_test} negatives each",
    )
    print_comparison(times, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    compare(options)


if __name__ == "__main__":
    main()
