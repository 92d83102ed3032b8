"""The CPU kernels compile without warnings elsewhere: with Clang, and for 64-bit ARM; their vector code computes what
plain loops compute. Where these are installed: Debian's clang-16 or newer, g++-aarch64-linux-gnu and qemu-user.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.building import CSRC, LANGUAGE, ROOT, torch_folder

FLAGS = [
    *LANGUAGE,
    *("-O3", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fopenmp-simd", "-fno-math-errno"),
    *("-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-Icsrc"),
]
"""As in CMakeLists.txt."""

PROGRAM = "tests/native/vector_code.cpp"

EMULATOR = {"aarch64-linux-gnu-g++": "qemu-aarch64"}


def clang():
    """The name of the newest Clang from 16."""
    names = ["clang++", *(f"clang++-{version}" for version in range(30, 15, -1))]
    for name in filter(shutil.which, names):
        shown = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
        if int(re.search(r"version (\d+)", shown.stdout)[1]) >= 16:
            return name
    return None


@pytest.fixture(params=["clang", "aarch64-linux-gnu-g++"])
def compiler(request):
    name = clang() if request.param == "clang" else shutil.which(request.param) and request.param
    if name is None:
        pytest.skip(f"{request.param} is not installed")
    return name


def compile_with(compiler, source, *arguments):
    """What the compiler says of a source of this repository."""
    more = ["-Wno-pass-failed"] if "clang" in compiler else []
    headers = f"-isystem{torch_folder() / 'include'}"
    command = [compiler, *FLAGS, *more, headers, str(source), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_kernels_compile_without_warnings(compiler, tmp_path):
    sources = [CSRC / "schema.cpp", *CSRC.glob("cpu/*.cpp"), *CSRC.glob("ops/*/cpu*.cpp")]
    assert len(sources) >= 12

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda x: compile_with(compiler, x, "-c", "-o", "/dev/null"), sources))

    assert [x.stderr[-2000:] for x in done if x.returncode or x.stderr] == []


def test_vector_code_computes_what_plain_loops_compute(compiler, tmp_path):
    emulator = EMULATOR.get(compiler)
    if emulator and not shutil.which(emulator):
        pytest.skip(f"{emulator} is not installed")

    built = compile_with(compiler, PROGRAM, "-static", "-o", str(tmp_path / "program"))
    assert built.returncode == 0, built.stderr[-3000:]
    command = [emulator] if emulator else []
    done = subprocess.run(
        [*command, tmp_path / "program"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")
