"""Check a GPU in a quarter of an hour: install or build, test, measure and sanitize, most valuable first.

On a machine without a GPU, prepare a folder with everything that a GPU machine without a network needs:

    python bench/gpu_check.py --prepare FOLDER --data ml-1m.txt.gz --python python3.12

On the GPU machine, from that folder or from a checkout, run the check:

    python FOLDER/bench/gpu_check.py --out RESULTS

Each figure is written to RESULTS/figures.jsonl as soon as it is measured. At the end, summary.txt compares the figures
with the targets. A failing stage does not stop later stages, but makes the exit code 1. `--dry-run` runs the same
stages on tiny data, on a CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gpu import prepare, stages, table
from gpu.figures import FILE, read, record
from gpu.stages import Outcome

SUMMARY_FILE = "summary.txt"
BUDGET = 535.0


def check(out: Path, budget: float, dry_run: bool) -> list[Outcome]:
    """Run all stages within `budget` seconds, with all that is known so far in `out` at any time."""
    end = time.monotonic() + budget
    device = "cpu" if dry_run else "cuda"
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="ssept-gpu-check-") as folder:
        scratch = Path(folder)
        for stage in stages.stages_of(device, out, scratch, quick=dry_run):
            outcome = stages.run(stage, out, scratch, end - time.monotonic())
            outcomes.append(outcome)
            values = asdict(outcome)
            record(out / FILE, "stage", values.pop("stage"), **values)
            write_summary(out, outcomes)
    return outcomes


def write_summary(out: Path, outcomes: Sequence[Outcome]) -> None:
    """Replace the table in one step."""
    unfinished = out / f"{SUMMARY_FILE}.part"
    unfinished.write_text(table.summary(read(out / FILE), outcomes))
    os.replace(unfinished, out / SUMMARY_FILE)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="FOLDER", help="fill a new folder")
    what.add_argument("--out", type=Path, metavar="FOLDER", help="run; an empty folder for results")
    add = parser.add_argument
    add("--data", type=Path, nargs="+", default=[], metavar="FILE", help="to take along")
    add("--python", default=sys.executable, help="the Python 3.12 that builds the wheel")
    add("--wheel", type=Path, metavar="FILE", help="take it along instead of building one")
    add("--budget", type=float, default=BUDGET, metavar="S", help="seconds that the run may take")
    add("--dry-run", action="store_true", help="tiny sizes, on a CPU")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    parsed = parser.parse_args(argv)
    if parsed.prepare is not None:
        try:
            size = prepare.prepare(parsed.prepare, parsed.python, parsed.data, parsed.wheel)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            sys.exit(f"gpu_check: {error}")
        print(f"{parsed.prepare} has {size / 1e6:.1f} MB")
        return 0
    import torch  # not where a folder is prepared, which needs none

    if not parsed.dry_run and not torch.cuda.is_available():
        parser.error("no GPU is available to this torch; --dry-run needs none")
    out = parsed.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / FILE).exists():
        parser.error(f"--out {out} has the results of another run")
    outcomes = check(out, parsed.budget, parsed.dry_run)
    print((out / SUMMARY_FILE).read_text(), end="")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
