"""A file of measured figures, one JSON object per line, that stays valid if its writer is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "figures.jsonl"


def record(path: Path, kind: str, name: str, **values: object) -> None:
    """Add a line and let it reach the disk; `kind` is "figure" or "stage"."""
    line = json.dumps({kind: name, **values})
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line, flush=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The figures by name, of each the last; a line that was cut short is left out."""
    figures = {}
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    for content in map(json.loads, lines):
        if "figure" in content:
            figures[content.pop("figure")] = content
    return figures
