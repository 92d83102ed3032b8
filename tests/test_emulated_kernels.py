"""The CUDA kernels' own tests, run again on the emulation under other orders of threads and under its checkers.

In the plain mode and the first order of threads they run with the other implementations, in the test file of each op.
"""

import re

import pytest
from cuda_emulation.build import run_python

TESTS = ["test_sampled_logits.py", "test_causal_attention.py"]


@pytest.mark.parametrize(
    ("mode", "thread_order"),
    [("plain", 1), ("plain", 2), ("sanitize", 0), ("race", 0), ("race", 1)],
)
def test_kernels_pass_their_tests(mode, thread_order, monkeypatch):
    monkeypatch.setenv("EMU_SEED", str(thread_order))
    # The race detector takes minutes for the longest sequences, and learns nothing new from them.
    selection = "emulated and not 257 and not 513" if mode == "race" else "emulated"
    done = run_python(mode, "-m", "pytest", "-q", "-s", "-k", selection, *TESTS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 260, "the selection has lost its tests"
