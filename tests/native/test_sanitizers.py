"""The extension's own tests under ASan with UBSan, and under TSan; and that these find planted bugs."""

import re
from functools import cache

import pytest
from support.building import ROOT
from support.implementations import NARROWER_REGISTERS
from support.sanitizers import build, run_python, run_tests

pytestmark = pytest.mark.slow

ATTENTION = [
    "ops/test_causal_attention.py",
    "ops/test_relative_bias.py",
    "ops/test_attention_exactness.py",
]
OPS = [
    *ATTENTION,
    *(
        f"ops/test_{op}.py"
        for op in (
            "user_item_embedding",
            "position_layer_norm",
            "feed_forward",
            "gated_residual",
            "multi_head_attention",
            "multi_head_bias",
            "row_update",
            "sampled_logits",
            "sampled_loss",
            "shared_loss",
            "swiglu",
            "top_k",
        )
    ),
]
# Without what tests torch rather than the kernels, and what starts a process of its own.
NATIVE = "native and not opcheck and not compil and not gradcheck and not never_closes"
FEWER = f"{NATIVE} and (not 700 or 0.4)"  # the longest sequences are slow here
# How narrow registers are changes how rows and tiles end, which these sizes of heads and lengths show.
ENDS = f"{FEWER} and not test_each_query and not 0.0 and not wrong_argument and not repeat and not 4096"
PLANTED = ROOT / "tests" / "native" / "planted_bugs.cpp"


def passed(done):
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.parametrize("simd", NARROWER_REGISTERS)
def test_attention_stays_within_its_memory_on_narrower_registers(simd):
    done = run_tests("address", "-k", ENDS, *ATTENTION, variables={"SSEPT_SIMD": simd})
    assert passed(done) >= 90, "the selection has lost its tests"


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_and_sampler_pass_their_tests(sanitizer):
    samplers = ("sampling/test_sampler.py", "sampling/test_numbering.py")
    assert passed(run_tests(sanitizer, "-k", FEWER, *OPS, *samplers)) >= 400, (
        "the selection has lost its tests"
    )


def test_kernels_and_sampler_pass_the_fuzz_corpus():
    done = run_tests(
        "address",
        "-k",
        "not emulated and not 600",  # the longest sequences are slow here
        "ops/test_any_call.py",
        "ops/test_arguments.py",
        "ops/test_hidden_values.py",
        "sampling/test_any_arguments.py",
    )
    assert passed(done) >= 200, "the selection has lost its tests"


@cache
def planted(sanitizer):
    return build(f"planted-{sanitizer}", [PLANTED], sanitizer)


def call(sanitizer, function):
    code = f"import ctypes, torch; torch.set_num_threads(2); print(ctypes.CDLL({planted(sanitizer)!r}).{function}(1))"
    return run_python(sanitizer, "-c", code)


@pytest.mark.parametrize(
    ("sanitizer", "function", "message"),
    [
        ("address", "read_past_the_end", "heap-buffer-overflow"),
        ("address", "overflow", "AddressSanitizer: ILL"),
        ("thread", "race_of_threads", "data race"),
        ("thread", "race_in_parallel_for", "data race"),
    ],
)
def test_a_planted_bug_is_found(sanitizer, function, message):
    done = call(sanitizer, function)
    assert done.returncode != 0
    assert message in done.stderr


def test_parallel_loops_are_no_races():
    done = call("thread", "parallel_for")
    assert done.stdout == "5\n", done.stderr
