"""A fresh process answers soon: it imports no package that the answer does not need."""

import subprocess
import sys

import pytest
import torch
from support.factories import tiny_model
from support.raw_ids import SIZES, interactions

from ssept_ext import SSEPT

TAKES_SECONDS = {
    *(
        "torch._dynamo",
        "torch._inductor",
        "torch.onnx",
        "torch.utils.tensorboard",
        "torch.distributed.fsdp",
    ),
    *("sympy", "onnx", "scipy", "matplotlib", "sklearn", "fastapi", "mlflow", "torchrec"),
}
MAKES_DATA_FRAMES = {"narwhals", "pandas", "polars", "pyarrow"}

ANSWER = """
import sys
import torch
of_torch = set(sys.modules)
from ssept_ext import SSEPT
SSEPT.from_pretrained("model").recommend(*eval(sys.argv[1]), k=2)
print(*set(sys.modules) - of_torch)
"""


def imported(folder, arguments):
    """What a process imports, beside what torch does, to load a model and answer."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_a_first_answer_imports_no_compiler_and_no_data_frames(tmp_path):
    tiny_model(SSEPT).save_pretrained(tmp_path / "model")

    assert not imported(tmp_path, "[{1: [3, 5]}]") & (TAKES_SECONDS | MAKES_DATA_FRAMES)


def test_a_first_data_frame_imports_one_library_of_them(tmp_path):
    pytest.importorskip("pandas")
    model = SSEPT.fit(interactions(), **SIZES, num_epochs=1)
    model.save_pretrained(tmp_path / "model")

    found = imported(tmp_path, "[None, ['anna']]")

    assert "pandas" in found
    assert not found & (TAKES_SECONDS | {"polars"})


def test_loading_draws_nothing_from_torchs_generator(tmp_path):
    tiny_model(SSEPT).save_pretrained(tmp_path / "model")
    before = torch.get_rng_state()

    SSEPT.from_pretrained(tmp_path / "model")

    assert torch.equal(torch.get_rng_state(), before)
