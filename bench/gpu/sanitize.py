"""Runs a tool of compute-sanitizer on gpu/every_kernel.py, ignoring reports about torch's own kernels."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu.figures import FILE, record

SANITIZER = "compute-sanitizer"
# A report names the kernels by "at ssept::cuda::..." or, of a race, by "access at ssept::cuda::...".
OURS = re.compile(r"^=+ .*\bat .*\bssept::", re.MULTILINE)
SUMMARY = re.compile(r"^=+ \w+ SUMMARY: .*", re.MULTILINE)


def command(tool: str) -> list[str]:
    options = [f"--tool={tool}", "--print-limit=10000", "--show-backtrace=no"]
    if tool == "memcheck":
        options.append(
            "--report-api-errors=no"
        )  # torch tries what may fail; our launches are checked
    # Not for initcheck, which must see torch's kernels write what ours read.
    if tool != "initcheck" and "--kernel-regex " in _help():
        options.append("--kernel-regex=kns=ssept")
    return [SANITIZER, *options]


def _help() -> str:
    return subprocess.run([SANITIZER, "--help"], capture_output=True, text=True, check=False).stdout


def _shown(process: subprocess.Popen[str]) -> str:
    """Its output, which is also printed as it comes: what is known when time is over is in the log."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    process.wait()
    return "".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=("memcheck", "racecheck", "initcheck"))
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parsed = parser.parse_args(argv)
    on_gpu = parsed.device == "cuda"
    process = subprocess.Popen(
        [
            *(command(parsed.tool) if on_gpu else []),
            *(sys.executable, "-m", "gpu.every_kernel", "--device", parsed.device),
        ],
        # Else torch asks for memory in large blocks, inside of which nothing is out of bounds.
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = _shown(process)
    reports = len(OURS.findall(output))
    ran = "every kernel ran" in output
    summary = SUMMARY.search(output)
    record(parsed.out / FILE, "figure", parsed.tool, reports=reports, ran=ran)
    if not ran or (on_gpu and summary is None):
        sys.exit(f"{parsed.tool} did not come to its end: exit code {process.returncode}")
    if reports:
        sys.exit(f"{parsed.tool} reports {reports} errors of our kernels")


if __name__ == "__main__":
    main()
