"""Times the training step on ML-1M: with a CUDA graph, eager, and the eager baseline; and lists its kernels."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from baselines.eager import EagerSSEPT
from measure import Call, allow_tf32, median_seconds
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from train_step import padded_step
from workload import BATCH_SIZE, Workload, load

from gpu.parts import Run, main
from ssept_ext import PackedBatch
from ssept_ext.training.batch_shape import BatchShape
from ssept_ext.training.cuda_graph import CudaGraphStep
from ssept_ext.training.step import EagerStep, draw_seeds, eager_step

KERNELS_FILE = "kernels.txt"
SSE = {"sse_user_prob": 0.92, "sse_item_prob": 0.1, "sse_joint": True}
STEPS = 200
"""Timed at once."""
WARM_UP = 6
"""Of these the first are eager, and one is captured."""


def our_work(
    workload: Workload, run: Run, bf16: bool, **model_options: Any
) -> tuple[EagerStep, torch.optim.Optimizer]:
    model = workload.model(**model_options).to(run.options.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def loss(batch: PackedBatch, seed: Tensor) -> Tensor:
        with torch.autocast(run.options.device.type, dtype=torch.bfloat16, enabled=bf16):
            return model.training_loss(batch, seed=seed)

    return eager_step(optimizer, loss), optimizer


def graphed_step(
    workload: Workload, run: Run, bf16: bool = False, **model_options: Any
) -> tuple[CudaGraphStep, PackedBatch]:
    """A step that was captured, and a batch for it."""
    # SSE is the sampler's work.
    batch = replace(workload.batch(torch.device("cpu")).packed, ids_replaced=True)
    work, optimizer = our_work(workload, run, bf16, **model_options)
    shape = BatchShape.like(batch, workload.seq_max_len)
    step = CudaGraphStep(work, optimizer, run.options.device, workload.seq_max_len, shape)
    for _ in range(1 if run.options.quick else WARM_UP):
        step(batch, draw_seeds(1))
    if run.on_gpu:
        torch.cuda.synchronize()
        if replay_of(step) is None:
            raise RuntimeError("the training step was not captured in a graph")
    return step, batch


def replay_of(step: CudaGraphStep) -> Call | None:
    """The captured step alone, without a new batch; None on a CPU."""
    return step._replay


def by_graph(name: str, run: Run, bf16: bool = False, **model_options: Any) -> None:
    """Device time of a replay, and time of a step with the host's part, as training takes it."""
    allow_tf32()
    workload = load("ML-1M", run.options.quick)
    step, batch = graphed_step(workload, run, bf16, **model_options)
    loop = median_seconds(lambda: step(batch, draw_seeds(1)), run.options, STEPS)
    replay = median_seconds(
        replay_of(step) or (lambda: step(batch, draw_seeds(1))), run.options, STEPS
    )
    capacity, tokens = step.shape.capacity, len(batch.items)
    run.record(name, us=1e6 * replay, loop_us=1e6 * loop, capacity=capacity, tokens=tokens)


def without_graph(run: Run) -> None:
    """The eager baseline, and our own step called kernel by kernel."""
    allow_tf32()
    device = run.options.device
    workload = load("ML-1M", run.options.quick)
    batch = workload.batch(device)
    baseline = padded_step(EagerSSEPT(workload.model().config).to(device), batch)
    run.record(
        "step TF32, eager baseline", us=1e6 * median_seconds(baseline, run.options, STEPS // 10)
    )
    work, _ = our_work(workload, run, bf16=False)
    seed = torch.tensor([1], device=device)
    ours = median_seconds(lambda: work(batch.packed, seed), run.options, STEPS // 10)
    run.record("step TF32, ours without a graph", us=1e6 * ours)


def kernels(name: str, run: Run, **model_options: Any) -> None:
    """Every kernel of a step, with calls and microseconds, to a file."""
    allow_tf32()
    step, batch = graphed_step(load("ML-1M", run.options.quick), run, **model_options)
    steps = 1 if run.options.quick else 20
    with profiler(run) as profiled:
        for _ in range(steps):
            step(batch, draw_seeds(1))
        if run.on_gpu:
            torch.cuda.synchronize()
    rows = sorted(
        (
            (microseconds / steps, count / steps, kernel)
            for microseconds, count, kernel in events(profiled, run)
        ),
        reverse=True,
    )
    with (run.out / KERNELS_FILE).open("a") as file:
        file.write(f"{name}: microseconds and calls of a step\n")
        file.writelines(f"{us:9.2f} {calls:6.1f}  {kernel[:160]}\n" for us, calls, kernel in rows)
    run.record(
        f"kernels of {name}",
        us=sum(us for us, _, _ in rows),
        calls=sum(calls for _, calls, _ in rows),
        longest=[[round(us, 1), calls, kernel[:80]] for us, calls, kernel in rows[:10]],
    )


def profiler(run: Run) -> profile:
    return profile(activities=[ProfilerActivity.CUDA if run.on_gpu else ProfilerActivity.CPU])


def events(profiled: profile, run: Run) -> list[tuple[float, int, str]]:
    """Microseconds, count and name, of a GPU's kernels and copies, without the calls that launched them."""
    time_of = "self_device_time_total" if run.on_gpu else "self_cpu_time_total"
    device = DeviceType.CUDA if run.on_gpu else DeviceType.CPU
    return [
        (getattr(event, time_of), event.count, event.key)
        for event in profiled.key_averages()
        if event.device_type == device and not event.is_user_annotation
    ]


def busy(run: Run) -> None:
    """Kernels' time over the time of an epoch, sampling included, under the profiler, which slows the host."""
    allow_tf32()
    workload = load("ML-1M", run.options.quick)
    step, _ = graphed_step(workload, run)
    num_steps = 2 if run.options.quick else workload.dataset.num_users // BATCH_SIZE
    with workload.sampler() as sampler:
        step(sampler.next_packed(), draw_seeds(1))
        with profiler(run) as profiled:
            begin = time.perf_counter()
            for _ in range(num_steps):
                step(sampler.next_packed(), draw_seeds(1))
            if run.on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
    percent = 1e-4 * sum(us for us, _, _ in events(profiled, run)) / seconds
    run.record("busy", percent=percent, epoch_ms=1e3 * seconds, steps=num_steps)


if __name__ == "__main__":
    main(
        {
            "TF32": partial(by_graph, "step TF32"),
            "baseline": without_graph,
            "kernels": partial(kernels, "step TF32"),
            "busy": busy,
            "bfloat16": partial(by_graph, "step bfloat16", bf16=True),
            "SSE": partial(by_graph, "step TF32, SSE", **SSE),
            "SSE-bfloat16": partial(by_graph, "step bfloat16, SSE", bf16=True, **SSE),
            "SSE-kernels": partial(kernels, "step TF32, SSE", **SSE),
            "original": partial(by_graph, "step TF32, original", architecture="original"),
        }
    )
