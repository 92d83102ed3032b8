"""Builds CUDA sources for the CPU, on the emulator in this folder, and runs Python on the result.

Three modes find different bugs: "plain" checks results, divergence and deadlocks; "sanitize" adds
ASan and UBSan, for accesses outside of tensors and arrays and misaligned ones; "race" adds the race
detector.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

Mode = Literal["plain", "sanitize", "race"]
MODES: tuple[Mode, ...] = ("plain", "sanitize", "race")

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "tests" / "cuda_emulation"
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_emulation"

COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-DSSEPT_CUDA_EMULATION"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover", "-fno-omit-frame-pointer"]
# Only for the calls at every load and store, which race_detector.cpp answers: libtsan is not
# linked. The guards of static variables would ask for more of it.
RACE = ["-fsanitize=thread", "-fno-threadsafe-statics"]


def build_ops(mode: Mode) -> Path:
    """Build all CUDA ops and their glue: as `torch.ops.ssept_emulated`, on CPU tensors.

    Load the library with `torch.ops.load_library`, in a process with the `environment` of its mode.
    """
    glue = (CSRC / "cuda").glob("*.cpp")
    kernels = (CSRC / "cuda").glob("*.cu")
    return build_library("ops", [CSRC / "schema.cpp", *sorted(glue), *sorted(kernels)], mode)


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
    flags = [*FLAGS, *(SANITIZE if mode == "sanitize" else []), *flags]
    sources = [*sources, EMULATION / "emulator.cpp", EMULATION / "runtime_api.cpp"]
    if mode == "race":
        sources.append(EMULATION / "race_detector.cpp")
    compile_one = partial(_compile, mode=mode, flags=flags, headers=_digest_of_headers())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_one, sources)]
    torch_libraries = _torch_folder() / "lib"
    link = [*flags, "-shared", "-Wl,--no-undefined,--as-needed", *objects]
    link += [f"-L{torch_libraries}", f"-Wl,-rpath,{torch_libraries}", "-ltorch_cpu", "-lc10"]
    return _build_once(link, f"{name}-{mode}", ".so", inputs="")


def environment(mode: Mode) -> dict[str, str]:
    """The environment in which a Python process can load libraries of this mode.

    SSEPT_EMULATION_MODE in it names the mode, for tests that run again in such a process.
    """
    variables = os.environ | {"SSEPT_EMULATION_MODE": mode}
    if mode == "sanitize":
        # ASan must come first in a process, and only knows of C++ exceptions that are there then.
        runtime = [_run_compiler(f"-print-file-name={x}") for x in ("libasan.so", "libstdc++.so")]
        variables["LD_PRELOAD"] = " ".join(path.strip() for path in runtime)
        variables["ASAN_OPTIONS"] = "detect_leaks=0"  # Python frees little at its end
    return variables


def run_python(mode: Mode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the folder of the tests and the mode's `environment`.

    Not in the root of the checkout, where `import ssept_ext` would find the sources, not the package.
    Run tests with `-m pytest -s`: what pytest captures is lost when a sanitizer ends the process.
    """
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        env=environment(mode),
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )


def _compile(source: Path, mode: Mode, flags: Sequence[str], headers: str) -> Path:
    arguments = [*flags, "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"]
    if mode == "race" and source.suffix == ".cu":
        arguments += RACE
    # Paths in the root of the checkout are relative, for the messages of the emulator.
    arguments += [f"-I{folder.relative_to(ROOT)}" for folder in (EMULATION / "include", CSRC)]
    arguments += [f"-isystem{_cuda_include_folder()}", f"-isystem{_torch_folder() / 'include'}"]
    arguments += [f"-fdebug-prefix-map={ROOT}=.", "-x", "c++", "-c", str(source.relative_to(ROOT))]
    return _build_once(arguments, source.stem, ".o", inputs=headers + source.read_text())


def _build_once(arguments: Sequence[str], stem: str, suffix: str, inputs: str) -> Path:
    """Run the compiler, unless what it makes of the same inputs is there already."""
    digest = hashlib.sha256("\0".join([COMPILER, *arguments, inputs]).encode()).hexdigest()
    output = BUILD / f"{stem}-{digest[:16]}{suffix}"
    if not output.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = output.with_name(f"{os.getpid()}-{output.name}")
        _run_compiler(*arguments, "-o", str(unfinished))
        unfinished.replace(output)  # in one step, as another process may build the same
    return output


def _run_compiler(*arguments: str) -> str:
    command = [COMPILER, *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nfailed:\n{done.stderr}")
    return done.stdout


def _digest_of_headers() -> str:
    """Of what any source may include: our headers by content, the others by their version."""
    headers = [
        header
        for folder in (CSRC, EMULATION)
        for pattern in ("*.h", "*.cuh")
        for header in sorted(folder.rglob(pattern))
    ]
    texts = [_run_compiler("--version"), version("torch"), *(h.read_text() for h in headers)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


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


def _torch_folder() -> Path:
    """Found without importing torch, which takes longer than most builds here."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the CUDA emulation needs the headers of torch: not installed")
    return Path(spec.origin).parent
