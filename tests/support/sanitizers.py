"""The extension built with a sanitizer, and Python processes that run on it.

"address" is ASan with UBSan, "thread" is TSan. Python and torch are not instrumented: accesses are checked where our
own code makes them.
"""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from support import building
from support.building import ASAN_AND_UBSAN, CSRC, LANGUAGE, ROOT

Sanitizer = Literal["address", "thread"]

FLAGS = [*LANGUAGE, "-O1", "-g1", "-fopenmp-simd", "-Wno-psabi"]
# Calls instead of inlined checks: this compiles six times as fast. The kernels under emulation, which have fewer
# accesses and longer tests, inline them.
INSTRUMENT = {
    "address": [*ASAN_AND_UBSAN, "--param=asan-instrumentation-with-call-threshold=0"],
    "thread": ["-fsanitize=thread"],
}
TIME_LIMIT = 240  # seconds that a process may take
BUILT_WITH = [
    f'-DSSEPT_{name}="sanitizers"' for name in ("COMPILER", "TORCH_VERSION", "CUDA_STATUS")
]

# In place of the installed package's module, which `import ssept_ext` then does not look for.
RUN_TESTS = """
import importlib.util, sys, pytest, torch
spec = importlib.util.spec_from_file_location("ssept_ext._C", sys.argv[1])
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import ssept_ext
assert ssept_ext._extension.native is module
sys.exit(pytest.main(sys.argv[2:]))
"""


@cache
def build_extension(sanitizer: Sanitizer) -> str:
    """Build the module `_C`, without CUDA."""
    patterns = ("*.cpp", "cpu/*.cpp", "ops/*/cpu*.cpp", "sampler/*.cpp")
    sources = [source for pattern in patterns for source in sorted(CSRC.glob(pattern))]
    return build(f"_C-{sanitizer}", sources, sanitizer)


def build(name: str, sources: Sequence[Path], sanitizer: Sanitizer) -> str:
    """Build a shared library, which may use torch, Python and pybind11 (torch's copy)."""
    flags = [*FLAGS, *INSTRUMENT[sanitizer]]
    includes = [f"-I{CSRC.relative_to(ROOT)}", f"-isystem{sysconfig.get_path('include')}"]
    commands = [(source, [*flags, *BUILT_WITH, *includes]) for source in sources]
    return str(building.build_shared(name, commands, flags, sorted(CSRC.rglob("*.h"))))


def run_tests(
    sanitizer: Sanitizer, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run pytest on the sanitized extension."""
    arguments = ("-c", RUN_TESTS, build_extension(sanitizer), "-q", "-s", *arguments)
    return run_python(sanitizer, *arguments, variables=variables)


def run_python(
    sanitizer: Sanitizer, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that can load what was built with the sanitizer, which ends it at the first error."""
    return building.run_python(
        environment(sanitizer) | (variables or {}), *arguments, timeout=TIME_LIMIT
    )


def environment(sanitizer: Sanitizer) -> dict[str, str]:
    if sanitizer == "address":
        return building.address_sanitizer_environment()
    shim = building.build_shared(
        "openmp", [(ROOT / "tests" / "support" / "openmp_for_tsan.cpp", FLAGS)], FLAGS, headers=()
    )
    return {
        "LD_PRELOAD": f"{building.path_of_library('libtsan.so')} {shim}",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1",
    }
