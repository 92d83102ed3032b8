"""The stages of the check, most valuable first. Each is a process that is killed when its time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
FOR_CUDA = ("mark.cuda", "implementation")
"""In files with tests that need a GPU, by a mark or a fixture: to import all others takes longer than many stages."""
FAILING_CAPTURES = ("capture_fails", "capture_that_failed")
"""In the names of tests in which a CUDA graph's capture fails."""
LEAST_SECONDS = 8
"""With less than that left of the budget, a stage is not begun."""
NDCG_PRESETS = ("sasrec-sampled-softmax", "sse-pt-sampled-softmax")
SANITIZERS = ("memcheck", "racecheck", "initcheck")


@dataclass(frozen=True)
class Stage:
    name: str
    arguments: Sequence[str]
    """Of Python."""
    limit: float
    """Seconds."""
    log: str = "log.txt"
    """A file that stages may share."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    stage: str
    passed: bool
    seconds: float
    verdict: str
    note: str
    """The last line of its output."""


def stages_of(device: str, out: Path, scratch: Path, quick: bool) -> list[Stage]:
    """What to run; ssept_ext goes to a folder in `scratch`."""
    site = scratch / "site"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "bench")]),
        "PYTHONUNBUFFERED": "1",
        **({"OMP_NUM_THREADS": "1"} if quick else {}),  # more cost time on tiny data
        # Where a CUDA toolkit puts nvcc and compute-sanitizer.
        "PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]),
    }
    results = ("--device", device, "--out", str(out))
    size = ("--quick",) if quick else ()

    def script(name: str, module: str, limit: int, *parts: str) -> Stage:
        arguments = ("-m", f"gpu.{module}", *results, *size, *parts)
        return Stage(name, arguments, limit, environment=environment)

    def tests(name: str, limit: int, *selection: str) -> Stage:
        arguments = ("-m", "pytest", "-v", "-rfE", "--tb=short", "-p", "no:cacheprovider")
        arguments += ("--rootdir", str(ROOT), "-m", "cuda", "-k", *selection)
        return Stage(name, arguments, limit, "tests.txt", environment)

    processes = ("-n", "1" if quick else "8") if find_spec("xdist") else ()
    failing = " or ".join(FAILING_CAPTURES)

    def sanitizer(tool: str) -> Stage:
        arguments = ("-m", "gpu.sanitize", *results, tool)
        return Stage(tool, arguments, 70, "sanitizer.txt", environment)

    return [
        Stage(
            "install",
            ("-m", "gpu.install", "--device", device, str(site)),
            300,
            environment=environment,
        ),
        script("smoke", "smoke", 60),
        script("step", "step", 110),
        tests("tests", 150, f"not ({failing})", *files_with(FOR_CUDA), *processes),
        # Apart, as torch may take a capture that failed for one under way until its process ends.
        tests("tests of failing captures", 60, failing, *files_with(FAILING_CAPTURES)),
        *(script(f"time to NDCG, {name}", "time_to_ndcg", 70, name) for name in NDCG_PRESETS),
        script("ops", "ops", 90),
        *(sanitizer(tool) for tool in SANITIZERS),
    ]


def files_with(texts: Sequence[str]) -> list[str]:
    """The files of tests in which one of some texts occurs."""
    files = sorted(TESTS.rglob("test_*.py"))
    return [str(file) for file in files if any(text in file.read_text() for text in texts)]


def run(stage: Stage, out: Path, scratch: Path, seconds_left: float) -> Outcome:
    """Run a stage; after its limit, or where the budget ends, it dies with all processes it started."""
    if seconds_left < LEAST_SECONDS:
        return Outcome(stage.name, False, 0.0, "no time left", "")
    limit = min(stage.limit, seconds_left)
    log = out / stage.log
    start = log.stat().st_size if log.exists() else 0
    begin = time.monotonic()
    try:
        with log.open("a") as output:
            output.write(f"== {stage.name}\n")
            output.flush()
            process = subprocess.Popen(
                [sys.executable, *stage.arguments],
                cwd=scratch,  # not with the sources, which would hide what was installed
                env=os.environ | dict(stage.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                verdict = f"FAILED: exit code {code}" if code else "passed"
            except subprocess.TimeoutExpired:
                verdict = f"FAILED: took more than {limit:.3g} s"
            finally:
                _end(process)
    except OSError as error:
        verdict = f"FAILED: {error}"
    seconds = round(time.monotonic() - begin, 1)
    return Outcome(stage.name, verdict == "passed", seconds, verdict, _last_line(log, start))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all processes of its session, some of which may outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path, start: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()[1:]
    # Figures, too, are in the log.
    return lines[-1].strip("= ")[:100] if lines and not lines[-1].startswith("{") else ""
