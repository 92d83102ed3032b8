"""The kernels that are compiled for several kinds of registers, on narrower ones than this machine's widest."""

import re

import pytest
from support.building import run_python
from support.implementations import NARROWER_REGISTERS, NARROWER_SIMD, SIMD

TESTS = [
    "ops/test_philox.py",
    "ops/test_causal_attention.py",
    "ops/test_relative_bias.py",
    "ops/test_attention_exactness.py",
    "ops/test_feed_forward.py",
    "ops/test_gated_residual.py",
    "ops/test_multi_head_attention.py",
    "ops/test_multi_head_bias.py",
    "ops/test_sampled_loss.py",
    "ops/test_shared_loss.py",
    "ops/test_swiglu.py",
    "ops/test_top_k.py",
    "ops/test_user_item_embedding.py",
]


def assert_passes(level, selection, at_least):
    done = run_python(
        {"SSEPT_SIMD": level}, *("-m", "pytest", "-q", *TESTS), *("-k", selection), timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= at_least, "the selection has lost its tests"


@pytest.mark.slow
@pytest.mark.parametrize("level", NARROWER_REGISTERS)
def test_kernels_pass_their_tests_on_narrower_registers(level):
    assert_passes(level, "native and not opcheck or philox or definition", at_least=100)


@pytest.mark.slow
@pytest.mark.skipif(SIMD[-2] not in NARROWER_SIMD, reason="no instructions for bfloat16")
def test_kernels_pass_their_tests_of_bfloat16_without_its_instructions():
    assert_passes(SIMD[-2], "native and not opcheck and bfloat16", at_least=30)


@pytest.fixture(scope="module")
def answers():
    """Of each level: what build_info calls it, and a digest of the best items and their scores."""
    code = """
import hashlib, torch
from ssept_ext import build_info, ops
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float16, torch.int8):
    table = (50 * torch.randn(700, 50)).to(dtype)
    for x in ops.top_k(torch.randn(9, 50), table, 20, 699):
        digest.update(x.numpy().tobytes())
print(build_info().simd, digest.hexdigest())
"""
    found = {}
    for level in SIMD:
        done = run_python({"SSEPT_SIMD": level}, "-c", code)
        assert done.returncode == 0, done.stderr
        found[level] = done.stdout.split()
    return found


def test_the_best_items_have_the_same_bits_on_all_registers(answers):
    digests = {digest for _, digest in answers.values()}
    assert len(digests) == 1
    assert len(digests.pop()) == 64


@pytest.mark.parametrize("level", SIMD)
def test_info_tells_the_registers_used(level, answers):
    assert answers[level][0] == SIMD[min(len(NARROWER_SIMD), SIMD.index(level))]


def test_unknown_registers_are_refused():
    done = run_python({"SSEPT_SIMD": "AVX"}, "-c", "import ssept_ext.ops")
    assert done.returncode == 1
    assert (
        'ValueError: SSEPT_SIMD must be baseline, avx2, avx512 or avx512_bf16, got "AVX"'
        in done.stderr
    )
