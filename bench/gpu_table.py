"""What the kernels must reach on a GPU, row by row, beside what they reach. Each ratio is of one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import causal_attention
import numpy as np
import sampled_logits
import torch
import user_item_embedding
from baselines.eager import EagerSSEPT
from measure import (
    OURS,
    Call,
    Options,
    Times,
    copy_floor,
    options_from,
    parser,
    print_table,
    print_title,
    side_by_side,
)
from train_step import padded_step
from workload import BATCH_SIZE, Batch, Workload, load

from ssept_ext import PackedBatch
from ssept_ext.graphs import BatchShape, GraphedStep, training_work

COPY = "a copy of the bytes"
BUDGET = 3.0  # seconds a row


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    at_least: float
    measured: float | None
    """None where there is no GPU to tell."""
    milliseconds: dict[str, float]

    def verdict(self, options: Options) -> str:
        if options.device.type != "cuda":
            return "not judged: needs a GPU"
        assert self.measured is not None
        return "met" if self.measured >= self.at_least else "not met"


def medians(times: Times) -> dict[str, float]:
    both = times.alternatives | times.floors
    return {name: float(np.median(seconds)) * 1e3 for name, seconds in both.items()}


def against(name: str, at_least: float, alternatives: dict[str, Call], options: Options) -> Row:
    """How many times as long as ours the one other takes."""
    (other,) = (n for n in alternatives if n != OURS)
    times = side_by_side(alternatives, {}, options, BUDGET)
    return Row(name, "x", at_least, times.ratio(other).median, medians(times))


def of_bandwidth(name: str, ours: Call, num_bytes: int, options: Options) -> Row:
    times = side_by_side({OURS: ours}, {COPY: copy_floor(num_bytes, options)}, options, BUDGET)
    percent = 100 * times.ratio(COPY).median
    return Row(f"{name}, of copy bandwidth", "%", 60, percent, medians(times))


def graphed_step(workload: Workload, batch: PackedBatch, options: Options) -> GraphedStep:
    model = workload.model().to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    work = training_work(optimizer, lambda batch, seed: model.training_loss(batch, seed=seed))
    shape = BatchShape.like(batch, workload.seq_max_len)
    return GraphedStep(work, optimizer, options.device, workload.seq_max_len, shape)


def training_row(workload: Workload, options: Options) -> Row:
    packed = workload.batch(torch.device("cpu")).packed
    step = graphed_step(workload, packed, options)
    baseline = EagerSSEPT(workload.model().config).to(options.device)
    alternatives = {
        OURS: lambda: step(packed),
        "eager baseline": padded_step(baseline, workload.batch(options.device)),
    }
    return against("training step by graph, float32/TF32", 10, alternatives, options)


def attention_row(batch: Batch, dtype: torch.dtype, options: Options) -> Row:
    case = (batch, 0.0, True, dtype, options)
    alternatives = {
        OURS: causal_attention.ours(*case),
        "masked SDPA": causal_attention.sdpa(*case, dense=False),
    }
    kind = str(dtype).removeprefix("torch.")
    return against(f"attention against masked SDPA, {kind}", 2, alternatives, options)


def flash_row(head_size: int, options: Options) -> Row:
    name = f"attention against dense flash SDPA, D={head_size}, T=512, bfloat16"
    if options.device.type != "cuda":
        return Row(name, "x", 0.7, None, {})
    rows, length = 32, 512
    alternatives = {
        OURS: causal_attention.full_length_ours(rows, length, head_size, options),
        "flash SDPA": causal_attention.full_length_flash(rows, length, head_size, options),
    }
    return against(name, 0.7, alternatives, options)


def embedding_row(workload: Workload, batch: Batch, options: Options) -> Row:
    ours = user_item_embedding.alternatives_of(workload, batch, True, options)[OURS]
    num_bytes = user_item_embedding.bytes_moved(workload, batch, True)
    return of_bandwidth("user_item_embedding", ours, num_bytes, options)


def logits_row(workload: Workload, batch: Batch, num_items: int, options: Options) -> Row:
    """Every (token, item) row counts as moved, by forward and backward, and its gradient as a write."""
    shape = (len(batch.packed.items), num_items)
    items = torch.randint(1, workload.dataset.itemnum + 1, shape, device=options.device)
    ours = sampled_logits.alternatives_of(workload, batch, items, options)[OURS]
    num_bytes = sampled_logits.bytes_gathered(workload, batch, items)
    return of_bandwidth(f"sampled_logits, K={num_items}", ours, num_bytes, options)


def busy_row(workload: Workload, options: Options) -> Row:
    """Kernels' time over the time of an epoch, sampling included, under the profiler, which slows the host."""
    name = "epoch of ML-1M, GPU busy"
    if options.device.type != "cuda":
        return Row(name, "%", 80, None, {})
    num_steps = len(workload.dataset.user_train) // BATCH_SIZE
    with workload.sampler() as sampler:
        step = graphed_step(workload, sampler.next_packed(), options)
        for _ in range(8):  # warm, and captured
            step(sampler.next_packed())
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            begin = time.perf_counter()
            for _ in range(num_steps):
                step(sampler.next_packed())
            torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return Row(name, "%", 80, 100 * busy / seconds, {"epoch": 1e3 * seconds, "busy": 1e3 * busy})


def rows(options: Options) -> list[Row]:
    torch.set_float32_matmul_precision("high")  # TF32, for ours and for the others
    workload = load("ML-1M", options.quick)
    batch = workload.batch(options.device)
    half = (torch.bfloat16,) if options.device.type == "cuda" else ()
    calls: list[Callable[[], Row]] = [
        lambda: training_row(workload, options),
        *(lambda d=d: attention_row(batch, d, options) for d in (torch.float32, *half)),
        *(lambda size=size: flash_row(size, options) for size in (64, 128)),
        lambda: embedding_row(workload, batch, options),
        *(lambda k=k: logits_row(workload, batch, k, options) for k in (1, 256)),
        lambda: busy_row(workload, options),
    ]
    return [call() for call in calls]


def table_of(measured: Sequence[Row], options: Options) -> list[list[str]]:
    return [
        [
            row.name,
            f"{row.at_least:g} {row.unit}",
            "" if row.measured is None else f"{row.measured:.2f} {row.unit}",
            row.verdict(options),
        ]
        for row in measured
    ]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--json", type=Path, help="also write the rows, with times, to a file")
    parsed = arguments.parse_args(argv)
    options = options_from(parsed)
    print_title(__doc__, options)
    measured = rows(options)
    print_table(["", "at least", "measured", ""], table_of(measured, options))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps([asdict(row) for row in measured], indent=2))


if __name__ == "__main__":
    main()
