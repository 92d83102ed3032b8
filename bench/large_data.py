"""Measure what grows with the data: preparing it, and what a model of its users and items does around training.

Each stage is a process of its own, and its figures are those of the whole process, imports included. CPU seconds depend
less than seconds on what else the machine does. Ids in the raw CSV are strings. Models have 16 + 16 features.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import heading, options_from, parser, print_table, print_title, resident

from ssept_ext import SSEPT, SASRecDataSet, WarpSampler
from ssept_ext.cli.app import main as ssept
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.evaluation import evaluate_popularity
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import eager_step, make_optimizer
from ssept_ext.training.table_rows import RowOptimizer

DIM, SEQ_MAX_LEN, BATCH_SIZE, NUM_STEPS = 16, 50, 128, 20
SIZES = ((30_000_000, 1_000_000, 1_000_000), (30_000_000, 10_000_000, 10_000_000))
"""Events, users and items."""
RAW, EVENTS, MODEL = "raw.csv", "events.safetensors", "model"


def write_raw(folder: Path, num_events: int, num_users: int, num_items: int) -> None:
    """Events in random order, of skewed users and items, after one of each."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    rng = np.random.default_rng(0)
    at_a_time = 1_000_000
    schema = pa.schema(
        [
            ("user", pa.string()),
            ("item", pa.string()),
            ("rating", pa.int64()),
            ("timestamp", pa.int64()),
        ]
    )
    with pa.csv.CSVWriter(folder / RAW, schema) as writer:
        for first in range(0, num_events, at_a_time):
            count = min(at_a_time, num_events - first)
            columns = []
            for letter, size in (("U", num_users), ("I", num_items)):
                ids = (rng.random(count) ** 2 * size).astype(np.int64)
                each = np.arange(first, first + count)
                ids = np.where(each < size, each, ids) * 7919 % size
                columns.append(
                    pc.binary_join_element_wise(letter, pc.cast(pa.array(ids), pa.string()), "")
                )
            times = rng.integers(1_300_000_000, 1_600_000_000, count)
            columns += [rng.integers(1, 6, count), times]
            writer.write(pa.table(columns, schema=schema))


def prepare(folder: Path) -> None:
    keep_all = ["--min-user-events", "1", "--min-item-events", "1"]
    with redirect_stdout(StringIO()):
        assert ssept(["prepare", str(folder / RAW), "--out", str(folder / EVENTS), *keep_all]) == 0


def load(folder: Path) -> SASRecDataSet:
    return SASRecDataSet(folder / EVENTS)


def sampler_of(data: SASRecDataSet) -> WarpSampler:
    sizes = (data.usernum, data.itemnum, BATCH_SIZE, SEQ_MAX_LEN)
    return WarpSampler(data.histories("train", with_times=False), *sizes, seed=0)


def draw(folder: Path) -> None:
    with sampler_of(load(folder)) as sampler:
        sampler.next_packed()


def train_and_save(folder: Path) -> None:
    data = load(folder)
    model = SSEPT(
        item_num=data.itemnum,
        user_num=data.usernum,
        seq_max_len=SEQ_MAX_LEN,
        embedding_dim=DIM,
        conv_dims=[2 * DIM, 2 * DIM],
    )
    options = TrainingOptions(table_optimizer="lazy_adam")
    adam = make_optimizer(model, 1e-3, options)
    step = eager_step(
        adam,
        lambda batch, seed: model.training_loss(batch, seed=seed),
        rows=RowOptimizer(model, options, adam),
    )
    with sampler_of(data) as sampler, sampler.numbering_rows():
        for batch in islice(iter(sampler.next_packed, None), NUM_STEPS):
            step(batch, torch.tensor([1]))
    assert data.user_ids is not None
    assert data.item_ids is not None
    model.known = KnownHistories.from_dataset(data, data.user_ids, data.item_ids)
    model.trained_on = Fingerprint.of(data)
    model.save_pretrained(folder / MODEL)


def load_model(folder: Path) -> SSEPT:
    return SSEPT.from_pretrained(folder / MODEL)


def evaluate(folder: Path) -> None:
    data = load(folder)
    load_model(folder).evaluate(data, seed=0)
    evaluate_popularity(data, seed=0)


def recommend(folder: Path) -> None:
    assert len(load_model(folder).recommend(users=["U0", "U7"], k=10)) == 20


class Stage(NamedTuple):
    label: str
    run: Callable[[Path], object]


STAGES = (
    Stage("prepare", prepare),
    Stage("load the data", load),
    Stage("load the data, draw the first batch", draw),
    Stage(f"train {NUM_STEPS} steps by lazy Adam, save the model", train_and_save),
    Stage("load the model", load_model),
    Stage("load both, evaluate 10,000 users and popularity", evaluate),
    Stage("load the model, recommend to 2 users", recommend),
)


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_bytes: float


def measured(number: int, folder: Path, quick: bool) -> Cost:
    """Run a stage in a process of its own, or in this one if quick."""
    begin = time.perf_counter()
    if quick:
        cpu = time.process_time()
        STAGES[number].run(folder)
        return Cost(time.perf_counter() - begin, time.process_time() - cpu, resident("VmHWM"))
    process = subprocess.Popen([sys.executable, __file__, "--stage", str(number), str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {STAGES[number].label}")
    seconds = time.perf_counter() - begin
    return Cost(seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def run(sizes: tuple[int, int, int], quick: bool, scratch: Path | None) -> None:
    heading("{:,} events, {:,} users, {:,} items".format(*sizes))
    rows = []
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        write_raw(folder, *sizes)
        for number, stage in enumerate(STAGES):
            cost = measured(number, folder, quick)
            rows.append(
                [
                    stage.label,
                    f"{cost.seconds:.1f}",
                    f"{cost.cpu_seconds:.1f}",
                    f"{cost.peak_bytes / 1e9:.1f}",
                ]
            )
            if stage.run is prepare:
                (folder / RAW).unlink()
    print_table(["", "seconds", "CPU seconds", "peak GB"], rows)
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where files are, of up to 5 GB"
    )
    arguments.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    parsed = arguments.parse_args(argv)
    if parsed.stage is not None:
        STAGES[int(parsed.stage[0])].run(Path(parsed.stage[1]))
        return
    options = options_from(parsed)
    print_title(__doc__, options)
    for sizes in ((2000, 100, 500),) if options.quick else SIZES:
        run(sizes, options.quick, parsed.scratch)


if __name__ == "__main__":
    main()
