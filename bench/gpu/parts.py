"""Helpers of the measuring scripts: their command line, and continuing after a part that fails."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import Options

from gpu.figures import FILE, record


@dataclass(frozen=True)
class Run:
    """What the parts of a script measure with."""

    options: Options
    out: Path
    """The folder of the results."""

    @property
    def on_gpu(self) -> bool:
        return self.options.device.type == "cuda"

    def record(self, name: str, **values: object) -> None:
        record(self.out / FILE, "figure", name, **values)


Part = Callable[[Run], None]


def main(parts: Mapping[str, Part], argv: Sequence[str] | None = None) -> None:
    """Run the parts that the command line names, or all, and exit with 1 if one failed.

    A part that fails may leave torch or the GPU unusable, so those after it get a new process.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--failed", action="store_true", help="an earlier part has failed")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parsed = parser.parse_args(argv)
    options = Options(quick=parsed.quick, device=torch.device(parsed.device), verbose=True)
    names = parsed.parts or list(parts)
    for i, name in enumerate(names):
        if not _passes(parts[name], Run(options, parsed.out)):
            left = names[i + 1 :]
            if left:
                _go_on_in_a_new_process(parsed, left)
            sys.exit(1)
    sys.exit(1 if parsed.failed else 0)


def _passes(part: Part, run: Run) -> bool:
    try:
        part(run)
    except Exception:
        traceback.print_exc()
        return False
    return True


def _go_on_in_a_new_process(parsed: argparse.Namespace, parts: Sequence[str]) -> None:
    spec = sys.modules["__main__"].__spec__
    assert spec is not None
    arguments = ["--device", parsed.device, "--out", str(parsed.out), "--failed"]
    arguments += ["--quick"] if parsed.quick else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", spec.name, *arguments, *parts])
