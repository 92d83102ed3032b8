"""The CUDA kernels' own tests, run again on the emulation under other orders of threads and under its checkers.

In the plain mode and the first order of threads they run with the other implementations, in the test file of each op.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from cuda_emulation.build import run_python

TESTS = [
    "test_bias_dropout.py",
    "test_causal_attention.py",
    "test_position_layer_norm.py",
    "test_sampled_logits.py",
    "test_user_item_embedding.py",
]
# Those left out launch the same kernels a thousand times, or on thousands of tokens.
CHECKED = "emulated and not gradcheck and not same_bits"
# The race detector takes minutes for the longest sequences of attention, and learns nothing new from them.
RACE_CHECKED = f"{CHECKED} and not 257 and not 513"
RUNS = [("plain", 1), ("plain", 2), ("sanitize", 0), ("race", 0), ("race", 1)]


def run(mode, thread_order):
    selection = RACE_CHECKED if mode == "race" else CHECKED
    variables = {"EMU_SEED": str(thread_order), "OMP_NUM_THREADS": "1"}
    return run_python(mode, "-m", "pytest", "-q", "-s", "-k", selection, *TESTS, **variables)


@cache
def start_all():
    """The emulation runs on one thread, so there is a run for every core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    return {case: pool.submit(run, *case) for case in RUNS}


@pytest.mark.parametrize(("mode", "thread_order"), RUNS)
def test_kernels_pass_their_tests(mode, thread_order):
    done = start_all()[mode, thread_order].result()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 500, "the selection has lost its tests"
