"""Exported files answer as `recommend` does in a process that cannot import this package."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.factories import perturbed, tiny_model

from ssept_ext import SSEPT
from ssept_ext.serving.by_raw_id import rank_events
from ssept_ext.serving.export import export_aoti, export_onnx, export_program

USERS, SEQUENCES, KS = [2, 0, 5], [[0, 0, 0, 0, 0, 7], [1, 2, 3, 4, 5, 6], [0, 0, 9, 4, 9, 2]], 5

ELSEWHERE = """
import sys
sys.modules["ssept_ext"] = None
try:
    import ssept_ext
except ImportError:
    pass
else:
    raise SystemExit("ssept_ext can be imported")
import numpy as np, torch
inputs = dict(np.load("inputs.npz"))
tensors = [torch.from_numpy(inputs[name]) for name in ("user", "input_seq", "k")]
"""

RUN = {
    "program": "answer = torch.export.load('model.pt2').module()(*tensors)",
    "aoti": "answer = torch._inductor.aoti_load_package('model.pt2')(*tensors)",
    "onnx": "import onnxruntime; answer = onnxruntime.InferenceSession('model.onnx').run(None, inputs)",
}


def export(kind, model, folder):
    if kind == "onnx":
        for module in ("onnxscript", "onnxruntime"):
            pytest.importorskip(module)
        export_onnx(model, folder / "model.onnx", top_k=True)
    elif kind == "aoti":
        export_aoti(model, folder / "model.pt2", top_k=True)
    else:
        torch.export.save(export_program(model, top_k=True), folder / "model.pt2")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "aoti")) for kind in RUN]
)
def test_an_exported_file_answers_as_recommend_without_this_package(kind, tmp_path):
    torch.manual_seed(0)
    model = perturbed(tiny_model(SSEPT))
    export(kind, model, tmp_path)
    np.savez(tmp_path / "inputs.npz", user=USERS, input_seq=SEQUENCES, k=[KS] * len(USERS))
    keep = "\nnp.savez('answer.npz', *(np.asarray(torch.as_tensor(x).detach()) for x in answer))"

    subprocess.run(
        [sys.executable, "-c", ELSEWHERE + RUN[kind] + keep], cwd=tmp_path, check=True, timeout=120
    )

    items, scores = np.load(tmp_path / "answer.npz").values()
    events = [(np.array([item for item in seq if item]), None) for seq in SEQUENCES]
    expected = rank_events(model, np.array(USERS), events, KS)
    np.testing.assert_array_equal(items, expected.items)
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_a_package_has_the_suffix_that_torch_asks_for(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.pt2, got .*model\.so"):
        export_aoti(tiny_model(), tmp_path / "model.so")


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))

    with pytest.raises(OSError, match="AOTInductor needs a C\\+\\+ compiler"):
        export_aoti(tiny_model(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
