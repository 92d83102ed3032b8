"""Compiles C++ for tests, each source once for the same inputs, and runs Python with what was built."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "tests"

COMPILER = os.environ.get("CXX", "g++")
LANGUAGE = ["-std=c++20", "-fPIC", "-fvisibility=hidden"]
# Traps (which ASan reports) instead of messages: they compile faster.
ASAN_AND_UBSAN = [
    "-fsanitize=address,undefined",
    "-fsanitize-undefined-trap-on-error",
    "-fno-omit-frame-pointer",
]


def build_shared(
    name: str,
    compile_commands: Iterable[tuple[Path, Sequence[str]]],
    link_flags: Sequence[str],
    headers: Iterable[Path],
) -> Path:
    """Compile sources with the arguments given for each, and link them with torch.

    What was built before is reused where source, headers, compiler, torch and arguments are the same.

    Raises
    ------
    RuntimeError
        If a source does not compile or link; shows the compiler's output.
    """
    compile_one = partial(_compile, headers=_digest(headers))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [
            str(path) for path in pool.map(compile_one, *zip(*compile_commands, strict=True))
        ]
    torch_libraries = torch_folder() / "lib"
    link = [*link_flags, "-shared", *objects, f"-L{torch_libraries}"]
    link += [f"-Wl,-rpath,{torch_libraries}", "-Wl,--as-needed", "-ltorch_cpu", "-lc10"]
    return _build_once(link, name, ".so", inputs="")


def run_compiler(*arguments: str) -> str:
    """The compiler's output, in the root of the checkout."""
    command = [COMPILER, *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nfailed:\n{done.stderr}")
    return done.stdout


def path_of_library(file: str) -> str:
    """Of one of the compiler's own libraries."""
    return run_compiler(f"-print-file-name={file}").strip()


def address_sanitizer_environment() -> dict[str, str]:
    """What a Python process needs to load a library built with ASan."""
    # ASan must come first in a process, and only knows of C++ exceptions that are there then.
    runtime = map(path_of_library, ("libasan.so", "libstdc++.so"))
    # No search for leaks, as Python frees little at its end; traps of UBSan are shown with their stack.
    return {
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0,handle_sigill=1,allow_user_segv_handler=0",
    }


def run_python(
    variables: Mapping[str, str], *arguments: str, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and further environment variables, in the folder of the tests.

    Not in the root of the checkout, where `import ssept_ext` would find the sources, not the package.
    Run tests with `-m pytest -s`: what pytest captures is lost when a sanitizer ends the process.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | variables,
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@cache
def torch_folder() -> Path:
    """Found without importing torch, which takes longer than most builds here."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("compiling for tests needs the headers of torch: not installed")
    return Path(spec.origin).parent


def _compile(source: Path, arguments: Sequence[str], headers: str) -> Path:
    command = [*arguments, f"-isystem{torch_folder() / 'include'}"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", f"-fdebug-prefix-map={ROOT}=."]
    # Paths in the root of the checkout are relative, for the messages of checkers.
    command += ["-x", "c++", "-c", str(source.relative_to(ROOT))]
    return _build_once(command, source.stem, ".o", inputs=headers + source.read_text())


def _build_once(arguments: Sequence[str], stem: str, suffix: str, inputs: str) -> Path:
    """Run the compiler, unless what it makes of the same inputs is there already."""
    digest = hashlib.sha256("\0".join([COMPILER, *arguments, inputs]).encode()).hexdigest()
    output = BUILD / f"{stem}-{digest[:16]}{suffix}"
    if output.exists():
        return output
    BUILD.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be building the same
        if not output.exists():
            unfinished = output.with_name(f"{os.getpid()}-{output.name}")
            run_compiler(*arguments, "-o", str(unfinished))
            unfinished.replace(output)  # in one step, for those who do not look at the lock
    return output


def _digest(headers: Iterable[Path]) -> str:
    """Of what any source may include: our headers by content, the others by their version."""
    texts = [run_compiler("--version"), version("torch"), *(h.read_text() for h in headers)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
