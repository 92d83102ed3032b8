"""Do everything a GPU is needed for: build, test, sanitize, measure. Leaves logs, a JSON and a table in one folder.

Needs a CUDA build of torch (2.11 or newer), nvcc and compute-sanitizer; no network. `--dry-run` takes the same way
without a GPU, on the emulation of CUDA. Every stage has a time limit, 8 minutes in all; one that fails does not stop
those after it, but the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
BENCH, TESTS = ROOT / "bench", ROOT / "tests"
sys.path.append(str(TESTS))
from cuda_emulation import build as emulation  # noqa: E402

PYTEST = ("-m", "pytest", "-v", "-s", "-p", "no:cacheprovider")
# A small run of every kernel: each op's forward and backward on ragged sequences, in a fixed order of sums too.
EVERY_KERNEL = "(match_the_reference and (ragged or 33)) or in_a_fixed_order"


@dataclass(frozen=True)
class Stage:
    name: str
    arguments: Sequence[str]
    """Of Python."""
    limit: int
    """Seconds."""
    wrapper: Sequence[str] = ()
    """Goes before Python."""
    folder: Path = TESTS
    """Not the root, where `import ssept_ext` would find the sources, not what was installed."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    stage: str
    passed: bool
    seconds: float
    why: str
    """Empty where it passed."""


def stages_on_gpu(results: Path) -> list[Stage]:
    install = (
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--force-reinstall",
        ".",
    )
    build = {"SSEPT_CUDA": "ON", "CUDAARCHS": "native"}
    sanitizer = ("compute-sanitizer", "--error-exitcode=1", "--target-processes=all")
    small = (*PYTEST, "-m", "cuda", "-k", f"cuda and ({EVERY_KERNEL})")
    table = ("gpu_table.py", "--device", "cuda", "--json", str(results / "table.json"))
    return [
        Stage("build", install, 110, folder=ROOT, environment=build),
        Stage("tests", (*PYTEST, "-m", "cuda"), 90),
        *(
            Stage(tool, small, 35, (*sanitizer, f"--tool={tool}"))
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
        Stage("table", table, 75, folder=BENCH),
        Stage("benchmarks", ("all.py", "--device", "cuda", "--brief"), 100, folder=BENCH),
    ]


def stages_of_dry_run(results: Path) -> list[Stage]:
    def emulated(name: str, mode: emulation.Mode) -> Stage:
        small = (*PYTEST, "-k", f"emulated and ({EVERY_KERNEL})")
        return Stage(name, small, 300, environment=emulation.environment(mode))

    build = "from cuda_emulation.build import MODES, build_ops\nfor mode in MODES: build_ops(mode)"
    table = ("gpu_table.py", "--quick", "--json", str(results / "table.json"))
    return [
        Stage("build", ("-c", build), 600),
        emulated("tests", "plain"),
        emulated("memcheck", "sanitize"),
        emulated("racecheck", "race"),
        Stage("table", table, 120, folder=BENCH),
        # One of them: tests/test_bench.py runs them all.
        Stage("benchmarks", ("bias_dropout.py", "--quick"), 120, folder=BENCH),
    ]


def run(stage: Stage, results: Path) -> Outcome:
    """Run a stage, its output in a log of its own; ended with all it started where it takes too long."""
    begin = time.monotonic()
    try:
        with (results / f"{stage.name}.log").open("w") as log:
            process = subprocess.Popen(
                [*stage.wrapper, sys.executable, *stage.arguments],
                cwd=stage.folder,
                env=os.environ | stage.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(stage.limit)
                why = f"exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                why = f"took more than {stage.limit} s"
    except OSError as error:
        why = str(error)
    return Outcome(stage.name, not why, round(time.monotonic() - begin, 1), why)


def table_rows(results: Path) -> list[str]:
    """The last lines of the table's log, from its heading on."""
    log = results / "table.log"
    lines = log.read_text().splitlines() if log.exists() else []
    start = next(
        (i for i, line in enumerate(lines) if "at least" in line and "measured" in line), None
    )
    return [] if start is None else lines[start:]


def summary(outcomes: Sequence[Outcome], machine: str, results: Path) -> str:
    lines = [f"{machine}, torch {torch.__version__}", ""]
    for outcome in outcomes:
        verdict = "passed" if outcome.passed else f"FAILED: {outcome.why}"
        lines.append(f"  {outcome.stage:<12}{outcome.seconds:>7.1f} s  {verdict}")
    return "\n".join([*lines, "", *table_rows(results)]) + "\n"


def results_folder(machine: str) -> Path:
    kind = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    return BENCH / "results" / f"gpu-{datetime.date.today()}-{kind}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="on the emulation, without a GPU")
    parser.add_argument(
        "--results", type=Path, help="a folder; bench/results/gpu-DATE-NAME if not given"
    )
    parsed = parser.parse_args(argv)
    if not parsed.dry_run and not torch.cuda.is_available():
        parser.error("no GPU is available to this torch; --dry-run needs none")
    machine = "no GPU: dry run on the emulation" if parsed.dry_run else torch.cuda.get_device_name()
    results = (parsed.results or results_folder("dry-run" if parsed.dry_run else machine)).resolve()
    results.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for stage in (stages_of_dry_run if parsed.dry_run else stages_on_gpu)(results):
        print(f"{stage.name} ...", flush=True)
        outcomes.append(run(stage, results))
    (results / "stages.json").write_text(
        json.dumps({"machine": machine, "stages": [asdict(o) for o in outcomes]}, indent=2)
    )
    text = summary(outcomes, machine, results)
    (results / "summary.txt").write_text(text)
    print(text, end="")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
