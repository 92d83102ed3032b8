"""The compiled extension: its report, the choice of backend, and life without it."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.implementations import SIMD

import ssept_ext
from ssept_ext import SASREC, SSEPT, _extension, ops, pack
from ssept_ext.ops import reference

OPS = _extension.OPS


@pytest.fixture(autouse=True)
def _restored_backend():
    yield
    ssept_ext.set_backend("auto")


@pytest.fixture
def reference_calls(monkeypatch):
    """Names of the ops that ran on the reference."""
    calls = []

    def recording(name):
        original = getattr(reference, name)

        def call(*args):
            calls.append(name)
            return original(*args)

        return call

    for name in OPS:
        monkeypatch.setattr(reference, name, recording(name))
    return calls


def run_model(**options):
    model = SSEPT(
        item_num=5, user_num=2, seq_max_len=3, embedding_dim=2, conv_dims=[4, 4], **options
    )
    model.predict({"user": [1], "input_seq": [[0, 1, 2]], "candidate": [[3, 4]]})
    sequence = torch.tensor([[0, 1, 2]])
    batch = pack(torch.tensor([1]), sequence, sequence, sequence)
    model.training_loss(batch)
    model.training_loss(replace(batch, negatives=torch.tensor([[3, 4]]), negatives_per="batch"))
    sizes = {"item_num": 5, "seq_max_len": 3, "embedding_dim": 2, "conv_dims": [2, 2]}
    SASREC(**sizes, architecture="gated", **options).training_loss(batch)


def without_native(code):
    """Run code in a process in which the extension cannot be imported."""
    blocked = f"import sys; sys.modules['ssept_ext._C'] = None\n{code}"
    return subprocess.run(
        [sys.executable, "-c", blocked],
        cwd=Path(__file__).parent,  # not where `import ssept_ext` would find the sources
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tests_run_on_a_built_extension():
    assert ssept_ext.build_info().torch_at_build_time, "the extension did not load: install first"


def test_build_info_reports_what_was_built_and_what_will_run():
    info = ssept_ext.build_info()
    assert info.torch_at_run_time == torch.__version__
    assert re.match(r"(GNU|Clang) \d+", info.compiler)
    assert re.match(r"sm_\d+.*nvcc|no CUDA compiler was found|SSEPT_CUDA=OFF", info.cuda)
    assert info.simd in SIMD
    assert set(info.ops) == set(_extension.ALL_OPS)
    assert info.ops["sampled_logits"]["cpu"] == "native"
    ssept_ext.set_backend("reference")
    assert "set_backend" in ssept_ext.build_info().ops["sampled_logits"]["cpu"]


def test_auto_takes_the_native_kernels(reference_calls):
    run_model()
    assert "sampled_logits" not in reference_calls


def test_set_backend_reference_takes_no_kernel(reference_calls):
    ssept_ext.set_backend("reference")
    run_model()
    assert set(reference_calls) == set(OPS)


def test_a_models_own_backend_goes_before_the_global_one(reference_calls):
    run_model(backend="reference")
    assert set(reference_calls) == set(OPS)


def test_a_calls_own_backend_goes_before_the_global_one(reference_calls):
    hidden, table = torch.ones(1, 2), torch.ones(3, 2)
    offsets = torch.tensor([0, 1], dtype=torch.int32)
    args = (hidden, table, None, torch.tensor([[1]]), None, offsets)
    ssept_ext.set_backend("reference")
    ops.sampled_logits(*args, backend="native")
    assert not reference_calls
    ops.sampled_logits(*args)
    assert reference_calls == ["sampled_logits"]


def test_native_without_a_kernel_is_an_error_that_says_why(monkeypatch):
    monkeypatch.setattr(_extension, "_kernels", frozenset())
    with pytest.raises(RuntimeError, match="user_item_embedding has no native kernel for cpu: it"):
        run_model(backend="native")


def test_an_unknown_backend_is_an_error_that_names_it():
    with pytest.raises(ValueError, match='backend must be one of .* got "fast"'):
        ssept_ext.set_backend("fast")


def test_without_the_extension_all_runs_on_the_reference_after_one_warning():
    done = without_native(
        "from ssept_ext import SSEPT, build_info\n"
        "m = SSEPT(item_num=5, user_num=2, seq_max_len=3, embedding_dim=2, conv_dims=[4, 4])\n"
        "m.predict({'user': [1], 'input_seq': [[0, 1, 2]], 'candidate': [[3, 4]]})\n"
        "print(build_info().ops['sampled_logits']['cpu'])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference: the extension did not load (ModuleNotFoundError")
    assert done.stderr.count("UserWarning") == 1
    assert "pip install" in done.stderr


def test_asking_for_native_without_the_extension_says_why_it_is_missing():
    done = without_native("import ssept_ext; ssept_ext.set_backend('native')")
    assert 'backend "native" is not available: the extension did not load' in done.stderr
