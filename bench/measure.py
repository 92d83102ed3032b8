"""Helpers of all benchmarks: options, side-by-side timing, peak memory, machine floors, tables.

Times on a CPU are only shown as ratios. Every round runs each alternative once, and a ratio is the median over
rounds, so that other load on the machine affects both sides alike.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Call = Callable[[], object]

OURS = "ours"
_SAMPLE_SECONDS = 0.02
_LARGE_GEMM = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Options:
    """The command line of every benchmark."""

    quick: bool
    """Tiny sizes and few rounds: does it run?"""
    brief: bool = field(default=False, kw_only=True)
    """A fifth of the time for each comparison."""
    device: torch.device
    verbose: bool
    """Show times on a CPU too."""

    @property
    def shows_times(self) -> bool:
        return self.verbose or self.device.type == "cuda"


def parser(description: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="tiny sizes: a test that it runs")
    result.add_argument("--brief", action="store_true", help="a fifth of the time")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument("--verbose", action="store_true", help="show times on a CPU too")
    return result


def options_from(arguments: argparse.Namespace) -> Options:
    device = torch.device(arguments.device)
    return Options(arguments.quick, device, arguments.verbose, brief=arguments.brief)


# Timing


@dataclass(frozen=True)
class Floor:
    """A piece of work whose time, times `scale`, is the least that the benchmarked work can take."""

    run: Call
    scale: float


@dataclass(frozen=True)
class Quartiles:
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Times:
    """Seconds of one call of every alternative and floor, in every round."""

    alternatives: dict[str, NDArray[np.float64]]
    floors: dict[str, NDArray[np.float64]]

    def ratio(self, name: str, to: str = OURS) -> Quartiles:
        """How many times as long as `to` it takes, compared within each round."""
        both = self.alternatives | self.floors
        low, median, high = np.quantile(both[name] / both[to], [0.25, 0.5, 0.75])
        return Quartiles(float(low), float(median), float(high))


def side_by_side(
    alternatives: Mapping[str, Call],
    floors: Mapping[str, Floor],
    options: Options,
    budget: float = 10.0,
) -> Times:
    """Time everything in turn, round after round, for about `budget` seconds.

    Every other round runs in the opposite order, so that nothing always follows the same one.
    """
    budget = budget / 5 if options.brief else budget
    runs = {**alternatives, **{name: floor.run for name, floor in floors.items()}}
    once = {name: _seconds_when_warm(run, options) for name, run in runs.items()}
    sample = 0.0 if options.quick else _SAMPLE_SECONDS
    calls = {name: max(1, math.ceil(sample / seconds)) for name, seconds in once.items()}
    round_seconds = sum(once[name] * calls[name] for name in runs)
    num_rounds = 2 if options.quick else max(3, min(50, int(budget / round_seconds)))

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(num_rounds):
        for name in list(runs) if i % 2 else reversed(runs):
            seconds[name].append(_seconds(runs[name], calls[name], options))
    return Times(
        alternatives={name: np.array(seconds[name]) for name in alternatives},
        floors={name: np.array(seconds[name]) * floors[name].scale for name in floors},
    )


def _seconds_when_warm(run: Call, options: Options) -> float:
    first = _seconds(run, 1, options)
    return first if first > 1 else _seconds(run, 1, options)


def _seconds(run: Call, calls: int, options: Options) -> float:
    if options.device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def allow_tf32() -> None:
    """Let products of float32 matrices, ours and others', round their factors to TF32 on a GPU."""
    torch.set_float32_matmul_precision("high")


def median_seconds(run: Call, options: Options, calls: int = 1, rounds: int = 7) -> float:
    """Of one call, host included, when warm."""
    run()
    if options.quick:
        calls, rounds = 1, 1
    return float(np.median([_seconds(run, calls, options) for _ in range(rounds)]))


def seconds_by_graph(run: Call, options: Options, calls: int = 20) -> float:
    """Of the device's work in one call, without the host: `calls` of them in a CUDA graph. On a CPU, of a plain call.

    Kernels of some microseconds are over before the host has called the next, so that a loop would time the host.
    """
    if options.device.type != "cuda":
        return median_seconds(run, options)
    capturing = torch.cuda.Stream()
    capturing.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(capturing):
        for _ in range(3):  # what is made at a first call cannot be captured
            run()
    torch.cuda.current_stream().wait_stream(capturing)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=capturing):
        for _ in range(calls):
            run()
    return median_seconds(graph.replay, options, calls=3, rounds=9) / calls


# Floors: what this machine would need for the bare arithmetic or the bare bytes


def gemm_floor(
    flops: float,
    rows: int,
    inner: int,
    columns: int,
    options: Options,
    dtype: torch.dtype = torch.float32,
) -> Floor:
    """`flops` at the rate of a product (rows, inner) @ (inner, columns)."""
    a = torch.randn(rows, inner, dtype=dtype, device=options.device)
    b = torch.randn(inner, columns, dtype=dtype, device=options.device)
    out = torch.empty(rows, columns, dtype=dtype, device=options.device)
    return Floor(lambda: torch.mm(a, b, out=out), flops / (2 * rows * inner * columns))


def large_gemm_floor(flops: float, options: Options, dtype: torch.dtype = torch.float32) -> Floor:
    """`flops` at the rate of a square product, large enough to be at its fastest."""
    size = 64 if options.quick else _LARGE_GEMM[options.device.type]
    return gemm_floor(flops, size, size, size, options, dtype)


def copy_floor(num_bytes: float, options: Options) -> Floor:
    """Half of `num_bytes` read and half written, in one copy of that size, so from the same caches."""
    source = torch.ones(max(1, int(num_bytes) // 8), device=options.device)
    target = torch.empty_like(source)
    return Floor(lambda: target.copy_(source), 1.0)


# Memory


def peak_extra_memory(step: Call, options: Options) -> int | None:
    """Bytes that a step needs at its peak beyond what is there before it; None where unknown.

    On a CPU that is the growth of the process's resident memory, whoever allocates.
    """
    step()  # what stays, such as Adam's moments
    gc.collect()
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    if not _reset_peak():
        return None
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def _reset_peak() -> bool:
    """Give free heap back to the system and let the kernel's high-water mark start anew (Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError, TypeError):  # another libc or another system
        return False
    return True


def resident(field: str) -> int:
    """Bytes of memory of this process, as Linux counts them: now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


# Output


def machine(options: Options) -> str:
    """One line on what kind of machine this is; never which."""
    details = [machine_kind(options), f"torch {torch.__version__}"]
    if options.device.type == "cpu":
        simd = torch.backends.cpu.get_cpu_capability()
        details[1:1] = [simd, f"{torch.get_num_threads()} torch threads"]
    return ", ".join(details)


def machine_kind(options: Options) -> str:
    """The model of GPU, or of CPU and how many cores this process may use."""
    if options.device.type == "cuda":
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def print_title(doc: str | None, options: Options) -> None:
    """What a benchmark measures, in its own words, and on which machine."""
    print(f"\n{(doc or '').strip()}\n{machine(options)}")


def heading(*lines: str) -> None:
    print("\n" + "\n".join(lines))


def print_comparison(
    times: Times, options: Options, memory: Mapping[str, int | None] | None = None
) -> None:
    """Each alternative's time and extra memory as multiples of ours, and our time as one of floors."""
    columns = ["", "time / ours", "quartiles"]
    if memory is not None:
        columns.append("extra memory / ours")
    if options.shows_times:
        columns += ["time"] + (["extra memory"] if memory is not None else [])
    rows = []
    for name, seconds in times.alternatives.items():
        ratio = times.ratio(name)
        row = [name, f"{ratio.median:.2f}", f"{ratio.low:.2f}..{ratio.high:.2f}"]
        if memory is not None:
            row.append(_memory_ratio(memory[name], memory[OURS]))
        if options.shows_times:
            row.append(f"{np.median(seconds) * 1e3:.3f} ms")
            if memory is not None:
                row.append(_megabytes(memory[name]))
        rows.append(row)
    print_table(columns, rows)
    for name in times.floors:
        ratio = times.ratio(OURS, to=name)
        print(
            f"  Ours takes {ratio.median:.1f} times ({ratio.low:.1f}..{ratio.high:.1f}) "
            f"as long as {name}."
        )


def compare(
    alternatives: Mapping[str, Call],
    floors: Mapping[str, Floor],
    options: Options,
    budget: float = 5.0,
) -> Times:
    """Measure time and extra memory of all alternatives, and print them."""
    times = side_by_side(alternatives, floors, options, budget)
    memory = {name: peak_extra_memory(run, options) for name, run in alternatives.items()}
    print_comparison(times, options, memory)
    return times


def _memory_ratio(value: int | None, ours: int | None) -> str:
    return "" if value is None or not ours else f"{value / ours:.2f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())
