"""Files that are replaced in one step: killed at any moment, a process leaves the old one or the new one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

Write = Callable[[Path], object]
_DIGITS = 16


def replace_file(path: Path, write: Write) -> None:
    """Let `write` make a file beside `path`, force it to disk, and put it in the place of `path`."""
    _put(path, write, lambda _: path)


def store_file(folder: Path, stem: str, suffix: str, write: Write) -> str:
    """Write a file named `stem-DIGEST.suffix` by its content, and return its name.

    Files of other content are left alone: whoever holds their names can still read them.
    """
    path = folder / f"{stem}.{suffix}"
    return _put(path, write, lambda part: folder / f"{stem}-{digest(part)}.{suffix}").name


def digest(path: Path) -> str:
    """The first 64 bits of the file's SHA-256, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()[:_DIGITS]


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove what processes that were killed left in `folder` of replacing, or storing, a file `name`."""
    for path in folder.glob(f".{name}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _put(path: Path, write: Write, final: Callable[[Path], Path]) -> Path:
    # A folder, because writers such as safetensors' have temporary files of their own.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of another process that had this number
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
    """Make new names last through a loss of power, and in the order in which they were given."""
    if os.name == "nt":  # which cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
