"""Fills a folder with everything that the check needs on a GPU machine without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60 * 10**6
"""Bytes of the folder."""
PYTHON, TORCH = "3.12", "2.11"
"""Of the machine with the GPU."""
ARCHITECTURE = "90-real"
BUILD_REQUIREMENTS = (
    f"torch=={TORCH}.0",
    *("numpy", "scikit-build-core>=0.10", "pybind11>=2.13", "ninja>=1.11", "cmake>=3.26"),
)

PARTS = (
    *("bench", "tests", "csrc", "ssept_ext", "docs", "CMakeLists.txt", "pyproject.toml"),
    *("README.md", "CONTRIBUTING.md", "LICENSE"),
)
"""Of the repository: sources are there for a build, and for tests that read them."""
HEADERS = "import sysconfig; print(sysconfig.get_path('include'))"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", ".*", "results")


def prepare(folder: Path, python: str, data: Sequence[Path] = (), wheel: Path | None = None) -> int:
    """Fill a new folder; returns its size in bytes.

    The wheel is built by `python`, or in an environment for it where its own lacks torch 2.11, unless one is given.

    Raises
    ------
    FileExistsError
        If the folder is there and not empty.
    FileNotFoundError
        If a file of the data, or the wheel, is missing.
    ValueError
        If `python` is another version than that of the machine with the GPU, the folder is too large, or it is in
        a git repository that does not ignore it.
    subprocess.CalledProcessError
        If building the wheel fails.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it, or name another folder")
    for file in (*data, *([wheel] if wheel else [])):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is no file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not by a .gitignore in it, from which scikit-build-core would learn that there is nothing to build.
    if _git(folder.parent, "check-ignore", "-q", str(folder.resolve())).returncode == 1:
        raise ValueError(f"git does not ignore {folder}: name a folder that it does, in build/ say")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".preparing-") as unfinished:
        part = Path(unfinished) / folder.name
        _copy_repository(part)
        for source in data:
            _copy(source, part / "data")
        _copy(wheel or build_wheel(python, Path(unfinished) / "wheel"), part / "wheel")
        _copy_headers(python, part / "include")
        (part / "prepared.json").write_text(json.dumps({"commit": _commit()}) + "\n")
        size = check_size(part)
        part.replace(folder)
    return size


def check_size(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(
            f"the prepared folder would take {size / 1e6:.1f} MB, and may take {LIMIT / 1e6:.0f} MB"
        )
    return size


def _copy_repository(folder: Path) -> None:
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=LEFT_OUT)
        else:
            _copy(source, folder)


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder)


def _copy_headers(python: str, include: Path) -> None:
    """Python.h and what it includes, should that machine lack them."""
    headers = Path(_ask(python, HEADERS))
    if (headers / "Python.h").exists():
        shutil.copytree(headers, include / headers.name)


def _commit() -> str:
    return _git(ROOT, "describe", "--always", "--dirty").stdout.strip() or "unknown"


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _ask(python: str, code: str) -> str:
    command = [python, "-c", code]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def build_wheel(python: str, folder: Path) -> Path:
    """For the Python, torch and GPU of that machine; needs nvcc."""
    version = _ask(python, "import sys; print('%d.%d' % sys.version_info[:2])")
    if version != PYTHON:
        raise ValueError(
            f"the wheel must be built by Python {PYTHON}, and {python} is {version}: "
            f"name one by --python, or a wheel by --wheel"
        )
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder))
    subprocess.run(
        [_builder(python), "-m", "pip", "wheel", *options, str(ROOT)],
        env=os.environ | {"SSEPT_CUDA": "ON", "CUDAARCHS": ARCHITECTURE},
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _builder(python: str) -> str:
    """`python` itself where it can build against the right torch, else one in an environment made for that."""
    can_build = "import torch, scikit_build_core, pybind11; print(torch.__version__)"
    done = subprocess.run([python, "-c", can_build], capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout.startswith(f"{TORCH}."):
        return python
    environment = ROOT / "build" / "gpu-check-python"
    builder = environment / "bin" / "python"
    print(f"installing torch {TORCH} into {environment}, some GB, once", file=sys.stderr)
    if not builder.exists():
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
    subprocess.run(
        [str(builder), "-m", "pip", "install", "--quiet", *BUILD_REQUIREMENTS], check=True
    )
    return str(builder)
