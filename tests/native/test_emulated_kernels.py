"""The CUDA kernels' own tests, run again on the emulation under other orders of threads and under its checkers.

In the plain mode and the first order of threads they run with the other implementations, in the test file of each op.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import pytest
from cuda_emulation.build import Mode, run_python

pytestmark = pytest.mark.slow

ATTENTION_TESTS = (
    "ops/test_causal_attention.py",
    "ops/test_relative_bias.py",
    "ops/test_attention_exactness.py",
)
TESTS = [
    *ATTENTION_TESTS,
    "ops/test_feed_forward.py",
    "ops/test_gated_residual.py",
    "ops/test_multi_head_attention.py",
    "ops/test_multi_head_bias.py",
    "ops/test_position_layer_norm.py",
    "ops/test_row_update.py",
    "ops/test_sampled_logits.py",
    "ops/test_sampled_loss.py",
    "ops/test_swiglu.py",
    "ops/test_top_k.py",
    "ops/test_user_item_embedding.py",
]
# Those left out launch the same kernels a thousand times, or on thousands of tokens, or test how torch calls them. From
# 257 tokens on, a CPU splits a sequence over threads; a GPU's tiles of up to 64 tokens only become more.
SELECTED = (
    "emulated and not gradcheck and not same_bits and not repeat_bit_by_bit and not 4096_keys "
    "and not opcheck and not 513 and not 257"
)
# The kernels of float16 are those of bfloat16, and those without dropout the ones with it. Losses differ in the
# arithmetic on a token alone, and values that are extreme or not finite change none of what the checkers look at. Sums
# over many rows, and what they are added to, are indexed alike for all types.
CHECKED = (
    f"{SELECTED} and not torch.float16 and not (test_sampled_loss and lanes and not softmax) "
    "and not every_size_of_a_logit and not finite and not -0.0 "
    "and not ((many_rows or is_given) and torch.bfloat16)"
)
# Senseless offsets give two sequences the same output, which is a race.
RACE_CHECKED = f"{CHECKED} and not senseless"
# Attention is what asks for the most shared memory. These tests launch its kernels of every type and width.
ATTENTION_TYPES = f"{SELECTED} and (each_type or tf32 or drops_exactly)"
KIB = 1024


@dataclass(frozen=True)
class Run:
    mode: Mode = "plain"
    thread_order: int = 0
    shared_memory: int = 227 * KIB
    """What a block may have: 99 KiB on sm_86, sm_89 and sm_120, 163 KiB on sm_80, 227 KiB on sm_90."""
    tests: Sequence[str] = tuple(TESTS)
    selection: str = CHECKED
    at_least: int = 500

    def __str__(self):
        return f"{self.mode}-{self.thread_order}-{self.shared_memory // KIB}-KiB"

    def start(self):
        variables = {
            "EMU_SEED": str(self.thread_order),
            "EMU_SHARED_MEMORY": str(self.shared_memory),
            "OMP_NUM_THREADS": "1",
        }
        return run_python(
            self.mode, "-m", "pytest", "-q", "-s", "-k", self.selection, *self.tests, **variables
        )


ATTENTION = Run(tests=ATTENTION_TESTS, selection=ATTENTION_TYPES, at_least=40)
RUNS = [  # the longest first, so that no core waits for it at the end; each in an order of threads of its own
    Run("race", 1, selection=RACE_CHECKED),
    Run("sanitize", 2),
    replace(ATTENTION, shared_memory=99 * KIB),
    replace(ATTENTION, shared_memory=163 * KIB),
]


@cache
def start_all():
    """The emulation runs on one thread, so there is a run for every core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    return {case: pool.submit(case.start) for case in RUNS}


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_kernels_pass_their_tests(case):
    done = start_all()[case].result()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= case.at_least, "the selection has lost its tests"


def test_a_device_with_too_little_shared_memory_is_named_with_what_it_has_and_what_is_needed():
    code = """
from support.implementations import implementation
from support.attention import arguments, attention, gradients
from support.samples import Ragged
import torch

emulated = implementation("emulated")
a = arguments(Ragged("", (70,)), 1, 256, dtype=torch.float32)
gradients(a, attention(emulated), a.q)
"""
    done = run_python("plain", "-c", code, EMU_SHARED_MEMORY="66560")
    message = "causal_attention_backward: a kernel needs 99840 bytes of shared memory in a block, "
    assert message + "but CUDA device 0 has 66560" in done.stderr
