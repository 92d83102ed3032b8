"""Benchmark a training step over the size of the embedding tables: as many users as items, of 50 features each.

Batches have 128 sequences of 50 events with one negative, all drawn uniformly, so nearly every id is another row.
"ours" trains the rows that a batch reads, by lazy Adam. Drawing the batches is not measured. `--plot FILE` draws the
times over the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from measure import (
    OURS,
    Call,
    Options,
    Times,
    heading,
    options_from,
    parser,
    peak_extra_memory,
    print_comparison,
    print_title,
    side_by_side,
)
from workload import BATCH_SIZE, DIM

from ssept_ext import SSEPT
from ssept_ext.data.packed import PackedBatch, number_rows
from ssept_ext.training.options import TableOptimizer, TrainingOptions
from ssept_ext.training.step import eager_step, make_optimizer
from ssept_ext.training.table_rows import RowOptimizer, RowsOfWholeTables, TableRows

SEQ_MAX_LEN, NUM_BATCHES = 50, 8
SIZES = (10_000, 100_000, 1_000_000, 3_000_000, 10_000_000)
DENSE_UP_TO = 3_000_000
"""Rows up to which Adam of whole tables is measured, for its memory."""
SMALLEST = "lazy Adam, the smallest tables"
WHOLE, GATHERED = "Adam, whole gradients", "Adam, gradients of rows"
ROWWISE, TORCHREC = "rowwise Adagrad", "TorchRec's rowwise Adagrad"


def random_batch(num_rows: int, rng: np.random.Generator) -> PackedBatch:
    ids = rng.integers(1, num_rows + 1, (BATCH_SIZE * SEQ_MAX_LEN, 3))
    return PackedBatch.from_numpy(
        users=rng.integers(1, num_rows + 1, BATCH_SIZE),
        items=ids[:, 0].copy(),
        positions=np.tile(np.arange(SEQ_MAX_LEN), BATCH_SIZE),
        cu_seqlens=np.arange(0, len(ids) + 1, SEQ_MAX_LEN, dtype=np.int32),
        max_seqlen=SEQ_MAX_LEN,
        positives=ids[:, 1].copy(),
        negatives=ids[:, 2:].copy(),
    )


class Alternatives:
    """Training steps on one model of this many items and users, each with an optimizer of its own."""

    def __init__(self, num_rows: int, options: Options) -> None:
        rng = np.random.default_rng(0)
        batches = [number_rows(random_batch(num_rows, rng)) for _ in range(NUM_BATCHES)]
        self.batches = [batch.to(options.device) for batch in batches]
        sizes = {"item_num": num_rows, "user_num": num_rows, "seq_max_len": SEQ_MAX_LEN}
        self.model = SSEPT(
            **sizes, embedding_dim=DIM, conv_dims=[2 * DIM, 2 * DIM], dropout_rate=0.2
        ).to(options.device)
        self.model.train()
        self.seed = torch.tensor([1], device=options.device)

    def step(self, how: TableOptimizer, gathers: bool = True) -> Call:
        options = TrainingOptions(table_optimizer=how)
        adam = make_optimizer(self.model, 1e-3, options)
        rows: TableRows | None = None
        if how != "adam":
            rows = RowOptimizer(self.model, options, adam)
        elif gathers:
            rows = RowsOfWholeTables(self.model)
        step = eager_step(
            adam, lambda batch, seed: self.model.training_loss(batch, seed=seed), rows=rows
        )
        batches = cycle(self.batches)
        return lambda: step(next(batches), self.seed)

    def torchrec(self) -> Call | None:
        """None where TorchRec is not installed."""
        try:
            from ssept_ext.large_tables import ShardedSSEPT
        except ImportError:
            return None
        config = self.model.config
        model = ShardedSSEPT(**asdict(config))
        options = TrainingOptions(table_optimizer="rowwise_adagrad")
        adam = make_optimizer(model, 1e-3, options)
        step = eager_step(
            adam,
            lambda batch, seed: model.training_loss(batch, seed=seed),
            rows=model.table_rows(options, adam),
        )
        batches = cycle(self.batches)
        return lambda: step(next(batches), self.seed)


def run(num_rows: int, smallest: Call, options: Options) -> Times:
    heading(
        f"{num_rows:,} items and {num_rows:,} users, d={DIM}+{DIM}, B={BATCH_SIZE}, T={SEQ_MAX_LEN}"
    )
    ours = Alternatives(num_rows, options)
    steps = {OURS: ours.step("lazy_adam"), SMALLEST: smallest}
    memory = peak_extra_memory(steps[OURS], options)
    if memory is not None:
        print(f"Beyond tables and moments, a step of ours takes {memory / 2**20:.0f} MiB.")
    steps[ROWWISE] = ours.step("rowwise_adagrad")
    if num_rows <= DENSE_UP_TO:
        steps[GATHERED] = ours.step("adam")
        steps[WHOLE] = ours.step("adam", gathers=False)
        if (torchrec := ours.torchrec()) is not None:
            steps[TORCHREC] = torchrec
    times = side_by_side(steps, {}, options)
    print_comparison(times, options)
    return times


def plot(times: dict[int, Times], file: Path) -> None:
    """Draw milliseconds of a step over the number of rows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in (OURS, ROWWISE, TORCHREC, GATHERED, WHOLE):
        sizes = [size for size, of in times.items() if name in of.alternatives]
        label = "lazy Adam" if name == OURS else name
        medians = [1e3 * float(np.median(times[size].alternatives[name])) for size in sizes]
        axes.loglog(sizes, medians, marker="o", label=label)
    axes.set(xlabel="items, and as many users", ylabel="ms a step")
    axes.legend()
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--plot", type=Path, metavar="FILE", help="draw the times, as PNG")
    parsed = arguments.parse_args(argv)
    options = options_from(parsed)
    print_title(__doc__, options)
    # TorchRec needs a process group, if of one process.
    backend = "nccl" if options.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    sizes = (100, 200) if options.quick else SIZES
    smallest = Alternatives(sizes[0], options).step("lazy_adam")
    times = {size: run(size, smallest, options) for size in sizes}
    dist.destroy_process_group()
    if parsed.plot is not None:
        plot(times, parsed.plot)


if __name__ == "__main__":
    main()
