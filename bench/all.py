"""Run every benchmark and save the output in bench/results/DATE-MACHINE.txt."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import Options, machine_kind, options_from, parser

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "train_step.py",
    "evaluate.py",
    "recommend.py",
    "sampler.py",
    "user_item_embedding.py",
    "position_layer_norm.py",
    "causal_attention.py",
    "feed_forward.py",
    "gated_residual.py",
    "sampled_logits.py",
    "softmax.py",
)


def run_all(scripts: Sequence[str], arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Run each script in a process of its own, showing its output; the output, and who failed."""
    output, failed = [], []
    for script in scripts:
        process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            output.append(line)
        if process.wait() != 0:
            failed.append(script)
    return "".join(output), failed


def results_file(options: Options) -> Path:
    kind = re.sub(r"[^a-z0-9]+", "-", machine_kind(options).lower()).strip("-")
    return HERE / "results" / f"{datetime.date.today()}-{kind}.txt"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = options_from(parser(__doc__).parse_args(arguments))
    output, failed = run_all(SCRIPTS, arguments)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if not (options.quick or options.brief):
        results = results_file(options)
        results.parent.mkdir(exist_ok=True)
        results.write_text(output)


if __name__ == "__main__":
    main()
