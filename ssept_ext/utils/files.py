"""Atomic file replacement: a process killed at any moment leaves either the old file or the new one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

Write = Callable[[Path], object]
_DIGITS = 16


def replace_file(path: Path, write: Write) -> None:
    """Let `write` make a temporary file, sync it to disk, and rename it to `path`."""
    _put(path, write, lambda _: path)


def store_file(folder: Path, stem: str, suffix: str, write: Write) -> str:
    """Write a file that is named `stem-DIGEST.suffix` after its content, and return its name.

    Files with other content are left alone, so that readers who know their names can still open them.
    """
    path = folder / f"{stem}.{suffix}"
    return _put(path, write, lambda part: folder / f"{stem}-{digest(part)}.{suffix}").name


def digest(path: Path) -> str:
    """Return the first 64 bits of the file's SHA-256, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()[:_DIGITS]


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporary files that killed processes left in `folder` while writing a file `name`."""
    for path in folder.glob(f".{name}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _put(path: Path, write: Write, final: Callable[[Path], Path]) -> Path:
    # A temporary folder, because some writers, such as safetensors, make temporary files of their own.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with this process id
    temporary.mkdir()
    try:
        part = temporary / path.name
        write(part)
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        place = final(part)
        part.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path.parent)
    return place


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames survive a power failure, in the order in which they were made."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
