"""What the GPU check collects needs few optional packages; tests that need another ask for it themselves."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))
stages = importlib.import_module("gpu.stages")
EXPECTED = {
    *("ssept_ext", "pytest", "hypothesis", "narwhals", "pyarrow", "pandas", "matplotlib"),
    *("onnx", "onnxruntime", "tensorboard"),
}
"""What a machine with a GPU may be expected to have, beside the package's own dependencies."""

COLLECT = """
import sys
import pytest

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MODULES = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Missing())
sys.exit(pytest.main(["-m", "cuda", "--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def optional_packages():
    """The distributions that the extras of pyproject.toml name."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [r for extra in project["optional-dependencies"].values() for r in extra]
    return {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}


def modules_of(distributions):
    """What they are imported as; of those that are not installed, nothing is lost by a guess."""
    installed = importlib.metadata.packages_distributions().items()
    modules = {module for module, owners in installed if distributions & set(owners)}
    return modules | {name.replace("-", "_") for name in distributions}


def test_gpu_tests_are_collected_without_what_a_gpu_machine_may_lack():
    missing = modules_of(optional_packages() - EXPECTED)
    assert {"faiss_cpu", "ir_measures", "polars", "pooch", "onnxscript", "torchrec"} <= missing

    done = subprocess.run(
        [sys.executable, "-c", COLLECT, ",".join(missing), *stages.files_with(stages.FOR_CUDA)],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # a plugin may be among them
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test_causal_attention.py::" in done.stdout
