"""Builds CUDA sources for the CPU, on the emulator in this folder, and runs Python on the result.

Three modes find different bugs: "plain" checks results, divergence and deadlocks; "sanitize" adds
ASan and UBSan, for accesses outside of tensors and arrays and misaligned ones; "race" adds the race
detector.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from support import building
from support.building import ASAN_AND_UBSAN, CSRC, LANGUAGE, ROOT

Mode = Literal["plain", "sanitize", "race"]
MODES: tuple[Mode, ...] = ("plain", "sanitize", "race")

EMULATION = ROOT / "tests" / "cuda_emulation"

# As nvcc does: a product and a sum become one instruction, which rounds once.
FUSED_MULTIPLY_ADD = ["-mfma", "-ffp-contract=fast", "-fexpensive-optimizations"]
FLAGS = [*LANGUAGE, *FUSED_MULTIPLY_ADD, "-O1", "-g1", "-DSSEPT_CUDA_EMULATION"]
# Without checks of pointers whose accesses ASan checks: this compiles in two thirds of the time.
# And without red zones around local arrays, in half of it: those of a kernel are registers, whose indices are constants
# that UBSan checks; others would put them into local memory, which tests/native/test_resource_usage.py finds.
SANITIZE = [
    *ASAN_AND_UBSAN,
    "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    "--param=asan-stack=0",
]
# Its kernels are bfloat16's, which the checkers watch: no mode but the plain one would find anything new in them.
UNCHECKED = CSRC / "ops" / "causal_attention" / "half.cu"
# Only for the calls at every load and store, which race_detector.cpp answers: libtsan is not
# linked. The guards of static variables would ask for more of it.
RACE = ["-fsanitize=thread", "-fno-threadsafe-statics"]


def build_ops(mode: Mode) -> Path:
    """Build all CUDA ops and their glue: as `torch.ops.ssept_emulated`, on CPU tensors.

    Load the library with `torch.ops.load_library`, in a process with the `environment` of its mode.
    """
    patterns = ("schema.cpp", "cuda/*.cpp", "ops/*/cuda.cpp", "ops/*/*.cu")
    sources = [source for pattern in patterns for source in sorted(CSRC.glob(pattern))]
    return build_library("ops", sources, mode)


def build_library(
    name: str, sources: Sequence[Path], mode: Mode, flags: Sequence[str] = ()
) -> Path:
    """Build a shared library of .cu files, of .cpp files that may use torch, and of the emulator.

    What was built before is reused where source, headers, compiler, torch and flags are the same.

    Raises
    ------
    FileNotFoundError
        If no CUDA toolkit is there to take headers from.
    RuntimeError
        If a source does not compile or link; shows the compiler's output.
    """
    checks = SANITIZE if mode == "sanitize" else []
    flags = [*FLAGS, *flags]
    emulator = [EMULATION / "emulator.cpp", EMULATION / "runtime_api.cpp"]
    if mode == "race":
        emulator.append(EMULATION / "race_detector.cpp")
    sources = [*sources, *emulator]
    includes = [f"-I{folder.relative_to(ROOT)}" for folder in (EMULATION / "include", CSRC)]
    includes.append(f"-isystem{_cuda_include_folder()}")

    def arguments(source: Path) -> list[str]:
        if source == UNCHECKED or not (source.suffix == ".cu" or source in emulator):
            return [
                *flags,
                *includes,
            ]  # as in the plain mode, whose objects these are: only kernels are checked
        race = RACE if mode == "race" and source.suffix == ".cu" else []
        fast = ["-O2"] if source in emulator else []  # it runs at every access
        return [*flags, *checks, *race, *fast, *includes]

    headers = [
        header
        for folder in (CSRC, EMULATION)
        for pattern in ("*.h", "*.cuh")
        for header in sorted(folder.rglob(pattern))
    ]
    commands = [(source, arguments(source)) for source in sources]
    return building.build_shared(
        f"{name}-{mode}", commands, [*flags, *checks, "-Wl,--no-undefined"], headers
    )


def environment(mode: Mode) -> dict[str, str]:
    """The variables with which a Python process can load libraries of this mode.

    SSEPT_EMULATION_MODE in it names the mode, for tests that run again in such a process.
    """
    checker = building.address_sanitizer_environment() if mode == "sanitize" else {}
    return {"SSEPT_EMULATION_MODE": mode, **checker}


def run_python(mode: Mode, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`building.run_python` with the `environment` of this mode and further variables."""
    return building.run_python(environment(mode) | variables, *arguments)


def _cuda_include_folder() -> Path:
    toolkits = [Path("/usr/local/cuda")]
    if nvcc := shutil.which("nvcc"):
        toolkits.insert(0, Path(nvcc).resolve().parents[1])
    if home := os.environ.get("CUDA_HOME"):
        toolkits.insert(0, Path(home))
    for toolkit in toolkits:
        include = toolkit / "include"
        if (include / "cuda_runtime_api.h").exists():
            return include
    raise FileNotFoundError(
        "the CUDA emulation needs the headers of a CUDA toolkit, and found no "
        "include/cuda_runtime_api.h in CUDA_HOME, beside the nvcc on PATH, or in /usr/local/cuda"
    )
