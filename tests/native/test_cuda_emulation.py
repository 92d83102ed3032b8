"""The CUDA emulation itself: correct kernels pass on it, and planted bugs are caught."""

from __future__ import annotations

import ctypes
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from cuda_emulation import run_kernel as runner
from cuda_emulation.build import EMULATION, MODES, Mode, build_library, run_python

KERNELS = EMULATION / "kernels.cu"
DATA = [float(i * i % 17) for i in range(256)]


@cache
def library(mode: Mode, *flags: str) -> str:
    return str(build_library("kernels", [KERNELS], mode, flags))


def run(mode: Mode, kernel: str, **launch) -> runner.Run:
    arguments = {"library": library(mode), "kernel": kernel, "data": DATA, **launch}
    if mode != "sanitize":
        return runner.run_kernel(**arguments)
    done = run_python(mode, runner.__file__, json.dumps(arguments))
    if done.returncode != 0:  # the sanitizer has ended the process
        return runner.Run(done.stderr, [])
    return runner.Run(*json.loads(done.stdout))


def line_of(comment: str) -> int:
    lines = KERNELS.read_text().splitlines()
    return 1 + next(i for i, line in enumerate(lines) if line.endswith(f"// {comment}"))


def layer_norm() -> list[float]:
    expected = []
    for row in (DATA[i : i + 64] for i in range(0, 256, 64)):
        mean = sum(row) / 64
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / 64)
        expected += [(x - mean) / deviation for x in row]
    return expected


def shuffles() -> list[float]:
    up = [i - 2 if i % 32 >= 2 else i for i in range(64)]
    down_in_groups_of_8 = [i + 2 if i % 8 < 6 else i for i in range(64)]
    seventh = [i // 32 * 32 + 7 for i in range(64)]
    neighbour = [0.5 + (i ^ 1) for i in range(64)]
    return [*up, *down_in_groups_of_8, *seventh, *neighbour]


CORRECT = {  # kernel: how it is launched, and what its data must begin with
    "layer_norm": ({"blocks": 4}, layer_norm()),
    "reverse_through_dynamic_shared": ({"threads": 256, "dynamic_bytes": 1024}, DATA[::-1]),
    "reverse_within_warp": ({}, DATA[31::-1] + DATA[63:31:-1] + DATA[64:]),
    "votes": ({}, [1.0] * 64 + [5.0] * 64 + [5.0] * 64),
    "half_warp_sums": ({}, [sum(range(i // 16 * 16, i // 16 * 16 + 16)) for i in range(64)]),
    "shuffles_of_every_width": ({}, shuffles()),
    "bytes_of_words": ({}, [float(i) for i in range(64)]),
    "atomics": ({"blocks": 2, "data": [0.0] * 256}, [64.0, 32.0, 127.0, -127.0, 1.0, 128.0]),
    "some_threads_exit_early": ({}, [3.0] * 32 + [35.0] * 8 + DATA[40:]),
    "intrinsics": (
        {"threads": 1},
        [3.0, 0.75, 4 + 4 + 31, 3.0, 1.0, 3 + 6.5, 1 + 0.25 + 10, DATA[255], 1.0],
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", CORRECT)
def test_correct_kernel_gives_its_result(kernel, mode):
    launch, expected = CORRECT[kernel]
    result = run(mode, kernel, **launch)
    assert result.message == ""
    assert result.data[: len(expected)] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("kernel", CORRECT)
def test_correct_kernel_does_not_depend_on_the_order_of_threads(kernel, seed, monkeypatch):
    monkeypatch.setenv("EMU_SEED", str(seed))
    test_correct_kernel_gives_its_result(kernel, "race")


BUGS = [  # kernel, how it is launched, and what each mode that must catch it says
    ("missing_barrier", {}, {"race": r"race on shared memory \(write, then read\)"}),
    ("missing_barrier_in_loop", {}, {"race": r"race on shared memory \(read, then write\)"}),
    ("missing_syncwarp", {}, {"race": r"race on shared memory \(write, then read\)"}),
    ("read_of_a_part_of_a_word", {}, {"race": r"race on shared memory \(write, then read\)"}),
    (
        "read_of_a_word_with_an_unfinished_part",
        {},
        {"race": r"race on shared memory \(write, then read\)"},
    ),
    ("plain_sum_across_blocks", {"blocks": 2}, {"race": "race on global memory"}),
    ("atomic_beside_plain_store", {}, {"race": r"global memory \(write, then atomic\)"}),
    ("plain_read_beside_atomic", {}, {"race": r"global memory \(atomic, then read\)"}),
    ("overwrite_while_others_read", {}, {"race": r"global memory \(read, then write\)"}),
    ("uninitialised_shared", {}, {"race": "read of uninitialised shared memory"}),
    (
        "write_past_dynamic_shared",
        {"dynamic_bytes": 256},
        {
            "plain": "dynamic shared memory written past its 256 bytes",
            "race": "write of 4 bytes at offset 256 of 256 bytes of dynamic shared memory",
            "sanitize": "AddressSanitizer: use-after-poison",
        },
    ),
    (
        "read_past_dynamic_shared",
        {"dynamic_bytes": 256},
        {
            "race": "read of 4 bytes at offset 256 of 256 bytes of dynamic shared memory",
            "sanitize": "AddressSanitizer: use-after-poison",
        },
    ),
    (
        "write_past_static_shared",
        {},
        {"sanitize": "AddressSanitizer: ILL"},
    ),
    ("write_past_global", {"threads": 256}, {"sanitize": "heap-buffer-overflow"}),
    ("misaligned_load", {}, {"sanitize": "AddressSanitizer: ILL"}),
    ("divergent_barriers", {}, dict.fromkeys(MODES, r"divergent __syncthreads at \S+:\d+ and")),
    ("divergent_collectives", {}, {"plain": "__shfl_sync meets __syncwarp"}),
    ("lane_outside_its_mask", {}, {"plain": "lane 16 is not in its own mask"}),
    ("barrier_waits_for_shuffle", {}, dict.fromkeys(MODES, "deadlock .* 32 of 64 threads")),
    ("trap", {}, {"plain": r"__trap\(\)"}),
]


@pytest.mark.parametrize(
    ("kernel", "launch", "mode", "message"),
    [
        pytest.param(kernel, launch, mode, message, id=f"{kernel}-{mode}")
        for kernel, launch, messages in BUGS
        for mode, message in messages.items()
    ],
)
def test_bug_is_caught(kernel, launch, mode, message):
    assert re.search(message, run(mode, kernel, **launch).message)


@pytest.mark.parametrize(
    ("launch", "error"),
    [
        ({"blocks": 0}, "invalid configuration argument"),
        ({"threads": 1025}, "invalid configuration argument"),
        ({"dynamic_bytes": 49_153}, "invalid argument"),
        ({"dynamic_bytes": 232_449, "opt_in": True}, "invalid argument"),
    ],
)
def test_launch_beyond_the_limits_of_a_gpu_gives_its_error(launch, error):
    assert run("plain", "votes", **launch) == runner.Run(error, DATA)


def test_the_device_may_have_less_shared_memory(monkeypatch):
    monkeypatch.setenv("EMU_SHARED_MEMORY", "101376")
    assert run("plain", "votes", dynamic_bytes=101_376, opt_in=True).message == ""
    message = run("plain", "votes", dynamic_bytes=101_377, opt_in=True).message
    assert message == "invalid argument"


def test_dynamic_shared_memory_grows_by_opting_in():
    launch = {"threads": 256, "dynamic_bytes": 49_153, "opt_in": True}
    assert run("plain", "reverse_through_dynamic_shared", **launch) == runner.Run("", DATA[::-1])


def test_memory_functions():
    data = (ctypes.c_float * 3)(1, 2, 3)
    ctypes.CDLL(library("plain")).copy_two_zeros(data)
    assert list(data) == [0, 0, 3]


def test_a_race_is_reported_with_both_lines_and_threads():
    message = run("race", "missing_barrier").message
    write = line_of("the write of the race")
    read = line_of("the read of the race")
    assert f"thread 31 of block #0 at ./tests/cuda_emulation/kernels.cu:{write}" in message
    assert f"thread 32 of block #0 at ./tests/cuda_emulation/kernels.cu:{read}" in message


def test_a_race_with_an_atomic_is_reported_with_the_kernels_line():
    message = run("race", "atomic_beside_plain_store").message
    assert f"kernels.cu:{line_of('the atomic of the race')}" in message


def test_shared_memory_starts_as_nan():
    data = run("plain", "uninitialised_shared").data
    assert data[:32] == [1.0] * 32
    assert all(map(math.isnan, data[32:64]))


def test_a_shuffle_from_a_lane_that_exited_gives_nan():
    assert all(map(math.isnan, run("plain", "shuffle_from_an_exited_lane").data[:16]))


def finishing_order(seed: int, monkeypatch) -> list[float]:
    """For every thread of two blocks of two warps, how many have finished before it."""
    monkeypatch.setenv("EMU_SEED", str(seed))
    return run("plain", "finishing_order", blocks=2, data=[0.0] * 256).data[:128]


def test_threads_finish_by_their_index_without_a_seed(monkeypatch):
    assert finishing_order(0, monkeypatch) == list(range(128))


def test_an_odd_seed_shuffles_threads(monkeypatch):
    order = finishing_order(1, monkeypatch)
    assert sorted(order) == list(range(128))
    assert order[:32] != sorted(order[:32])
    assert order == finishing_order(1, monkeypatch) != finishing_order(3, monkeypatch)


def test_an_even_seed_lets_warps_run_ahead(monkeypatch):
    orders = [finishing_order(seed, monkeypatch) for seed in (2, 4, 6, 8)]
    assert all(sorted(order[:32]) == order[:32] for order in orders)
    assert any(order[0] > order[32] for order in orders)


def test_seeds_reorder_blocks(monkeypatch):
    orders = [finishing_order(seed, monkeypatch) for seed in (1, 2, 3, 4)]
    assert any(order[0] > order[64] for order in orders)


def test_a_kernel_can_be_launched_after_one_that_failed():
    assert run("plain", "divergent_barriers").message
    assert run("plain", "votes").message == ""


def test_libraries_in_one_process_have_emulators_of_their_own():
    assert run("race", "missing_barrier").message
    assert run("plain", "missing_barrier").message == ""


def test_works_without_the_assembly_of_x86_64():
    portable = library("plain", "-DSSEPT_EMULATION_UCONTEXT")
    result = run("plain", "layer_norm", blocks=4, library=portable)
    assert result.data == pytest.approx(layer_norm(), rel=1e-5, abs=1e-6)


def test_kernels_can_be_launched_from_any_thread():
    run("race", "layer_norm", blocks=4)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run, "race", "layer_norm", blocks=4).result()
    assert result.message == ""
    assert result.data == pytest.approx(layer_norm(), rel=1e-5, abs=1e-6)


def test_the_message_of_a_bug_reaches_python_through_a_torch_op():
    ops = build_library("ops_for_tests", [KERNELS, EMULATION / "kernels_op.cpp"], "sanitize")
    code = f"""
import torch
torch.ops.load_library({str(ops)!r})
torch.ops.cuda_emulation_test.divergent_barriers(torch.zeros(64))
"""
    done = run_python("sanitize", "-c", code)
    assert "RuntimeError: divergent __syncthreads at tests/cuda_emulation/kernels.cu" in done.stderr
