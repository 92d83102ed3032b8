"""Lists what one captured training step launches on a GPU, for each preset on batches of ML-1M. Needs no GPU.

The step runs on tensors without memory. Each op that torch would dispatch on a GPU counts as its number of kernels,
with the FLOPs of its products, and with its tensors' bytes: all are read and written once, rows that are gathered
each time. The microseconds are a MODEL and no measurement: the larger of bytes / bandwidth and FLOPs / rate, and a
constant for each kernel.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from launches import Call, Recorder, size_of
from measure import heading, print_table
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from workload import BATCH_SIZE, DIM, DROPOUT, load

from ssept_ext import SASREC, SSEPT, SASRecDataSet, _extension
from ssept_ext.training.batch_shape import BatchShape
from ssept_ext.training.cuda_graph import _Buffer
from ssept_ext.training.presets import PRESETS
from ssept_ext.training.recipe import Recipe
from ssept_ext.training.step import EagerStep, eager_step, make_loss, make_optimizer

META, CUDA = torch.device("meta"), torch.device("cuda", 0)

SETTINGS: dict[str, dict[str, Any]] = {
    # Without those whose negatives are shared: their loss is plain PyTorch on a GPU, whose kernels nobody has profiled.
    **{name: x for name, x in PRESETS.items() if "negatives_per" not in x},
    # What `train_step.py` measures.
    "recommenders": {"seq_max_len": 200, "embedding_dim": DIM, "dropout_rate": DROPOUT},
    "pre-ln": PRESETS["sse-pt-sampled-softmax"] | {"architecture": "pre-ln"},
    "gated": PRESETS["sse-pt-sampled-softmax"] | {"architecture": "gated"},
    "time": PRESETS["sse-pt-sampled-softmax"] | {"position_bias": True, "time_bias": True},
    "cosine": PRESETS["sse-pt-sampled-softmax"] | {"cosine_temperature": 0.05},
}

# Of one H100, from bench/results/gpu-2026-11-28: a large copy; a large product in TF32; by how much a step is longer
# with SSE, which is 359 small kernels more, for each of them and without its bytes.
BANDWIDTH, RATE, GAP = 2432.0, 374.0, 1.4
FIGURES = ("calls", "kernels", "bytes", "flops", "microseconds")


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU."""

    bandwidth: float = BANDWIDTH
    """GB/s."""
    rate: float = RATE
    """TFLOP/s."""
    gap: float = GAP
    """Microseconds of a kernel that does nothing, and until the next one."""

    def microseconds(self, call: Call) -> float:
        moving, multiplying = call.num_bytes / self.bandwidth / 1e3, call.flops / self.rate / 1e6
        return max(moving, multiplying) + self.gap * call.kernels


@dataclass(frozen=True)
class Report:
    """Of one step."""

    description: str
    calls: Sequence[Call]

    @property
    def kernels(self) -> int:
        return sum(call.kernels for call in self.calls)

    def by_op(self, machine: Machine) -> list[dict[str, Any]]:
        """The `FIGURES` of each op, the longest first."""
        rows: dict[str, dict[str, Any]] = {}
        for call in self.calls:
            row = rows.setdefault(call.op, {"op": call.op, **dict.fromkeys(FIGURES, 0)})
            times = machine.microseconds(call)
            values = (1, call.kernels, call.num_bytes, call.flops, times)
            row |= {name: row[name] + value for name, value in zip(FIGURES, values, strict=True)}
            rows[call.op] = row
        return sorted(rows.values(), key=lambda row: -row["microseconds"])


class _OnCuda(TorchFunctionMode):
    """Meta tensors say that they are on a GPU, and what is to be on a GPU becomes a meta tensor."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func == Tensor.device.__get__ and args[0].is_meta:
            return CUDA
        if func == Tensor.is_cuda.__get__:
            return args[0].is_meta
        if func == Tensor.backward:  # it is written in Python, which must be in this mode too
            with self:
                return torch.autograd.backward(args[0], (kwargs or {}).get("gradient"))
        args, kwargs = tree_map_only(
            torch.device, lambda x: META if x.type == "cuda" else x, (args, kwargs or {})
        )
        return func(*args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Meta tensors are on a GPU, and all of our ops have kernels for it."""
    kernels = frozenset((op, "cuda") for op in _extension.ALL_OPS)
    with patch.object(_extension, "_kernels", kernels), _OnCuda():
        yield


def recipe_of(name: str, **changes: Any) -> Recipe[Any]:
    kind = SASREC if name.startswith("sasrec") else SSEPT
    return Recipe.from_options(kind, SETTINGS[name] | changes)


def report_of(name: str, quick: bool) -> Report:
    """Of the step that a training with these settings would capture."""
    workload = load("ML-1M", quick)
    data, recipe = workload.dataset, recipe_of(name)
    if recipe.model["time_bias"]:  # the file has no times, and any will do
        histories = data.histories("all")
        data = SASRecDataSet(histories=histories._replace(times=np.arange(len(histories.items))))
    model = recipe.make_model(data.itemnum, data.usernum).to(META)
    with recipe.make_sampler(data, model.seq_max_len, seed=0) as sampler:
        batch = sampler.next_packed()
        shape = BatchShape.like(batch, model.seq_max_len, sampler.sequence_lengths())
        if quick:  # as many rows as a step on real histories has at least: few have other kernels
            shape = replace(shape, capacity=max(shape.capacity, 4096))
        with pretended_gpu(), Recorder(batch.cu_seqlens.diff()) as recorder:
            given = _Buffer(shape, model.seq_max_len, META)
            step = _step(recipe, model, sampler)
            step(given.batch, given.seed)
            recorder.calls.clear()  # of the first step, in which Adam makes its moments
            step(given.batch, given.seed)
    # To the GPU on a stream for copies, and there to the graph's input.
    copies = Call("copies of the batch", 2, 3 * size_of(given.memory), 0)
    tokens = f"{len(batch.items)} tokens in {shape.capacity} rows"
    description = f"{BATCH_SIZE} sequences, {tokens}; {workload.source}; float32"
    return Report(description, [*recorder.calls, copies])


def _step(recipe: Recipe[Any], model: Any, sampler: Any) -> EagerStep:
    """As `Run` and `CudaGraphStep` make it on a GPU."""
    optimizer = make_optimizer(model, recipe.loop.learning_rate, recipe.training)
    for group in optimizer.param_groups:
        group |= {"lr": torch.tensor(group["lr"], device=CUDA), "capturable": True}
    loss = make_loss(model, sampler, recipe.training)
    return eager_step(optimizer, loss, recipe.training.max_grad_norm)


def show(name: str, report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    helpers = sum(call.helpers for call in report.calls)
    kernels = f"{report.kernels} kernels, {helpers} of them helpers of products and sums"
    heading(f"{name}: {kernels}", report.description)
    total = {"op": "the step", **{figure: sum(row[figure] for row in rows) for figure in FIGURES}}
    table = []
    for row in (*rows, total):
        scaled = (row["bytes"] / 1e6, row["flops"] / 1e9, row["microseconds"])
        counts = (row["op"], str(row["calls"]), str(row["kernels"]))
        table.append([*counts, *(f"{x:.2f}" for x in scaled)])
    print_table(["op", "calls", "kernels", "MB", "GFLOP", "µs, model"], table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SETTINGS)}; or all")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="of memory, in GB/s")
    parser.add_argument("--rate", type=float, default=RATE, help="of products, in TFLOP/s")
    parser.add_argument("--gap", type=float, default=GAP, help="of each kernel, in µs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="tiny histories: a test that it runs")
    parsed = parser.parse_args(argv)
    if unknown := [name for name in parsed.names if name not in SETTINGS]:
        parser.error(f"{unknown[0]} is not one of {', '.join(SETTINGS)}")
    machine = Machine(parsed.bandwidth, parsed.rate, parsed.gap)
    reports = {name: report_of(name, parsed.quick) for name in parsed.names or SETTINGS}
    if parsed.json:
        steps = {
            name: {"kernels": report.kernels, "ops": report.by_op(machine)}
            for name, report in reports.items()
        }
        print(json.dumps({"model, not measured": vars(machine), "steps": steps}, indent=1))
        return
    print((__doc__ or "").strip())
    print(
        f"\nThe model: {machine.bandwidth} GB/s, {machine.rate} TFLOP/s, {machine.gap} µs a kernel"
    )
    for name, report in reports.items():
        show(name, report, report.by_op(machine))


if __name__ == "__main__":
    main()
