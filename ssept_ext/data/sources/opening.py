"""Finding and opening files of events, compressed or not."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast
from zipfile import BadZipFile

Opener: TypeAlias = Callable[[], BinaryIO]
"""Opens a file at its beginning and decompresses it; called again to look for a bad line."""


SHOWN_CHARACTERS = 200


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file; one that starts as gzip files do is decompressed, whatever its name."""
    with Path(path).open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if compressed else Path(path).open("rb")


@contextmanager
def named_damage(source: str) -> Iterator[None]:
    """Turn the errors of damaged gzip and zip files into a ValueError that names the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, BadZipFile) as error:
        raise ValueError(f"{source} is damaged: {error}") from error


def bad_line(source: str, number: int, reason: str, line: bytes) -> ValueError:
    """Make an error that shows a line and its number, counted from 1."""
    text = line.decode(errors="replace").rstrip("\r\n")
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return ValueError(f"{source}, line {number}: {reason}: {shown!r}")


EVENT_FILES = ("u.data", "ratings.dat", "ratings.csv")
"""Names of the file of events in the folders and archives of MovieLens."""


def find_events(path: Path) -> tuple[str, Opener]:
    """Return the name and an opener of the file of events that `path` is or contains."""
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        file = path / _choose(path, names)
        return str(file), lambda: open_file(file)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
        name = _choose(path, names)
        return f"{path}/{name}", lambda: cast(BinaryIO, zipfile.ZipFile(path).open(name))
    return str(path), lambda: open_file(path)


def _choose(path: Path, names: list[str]) -> str:
    found = [name for name in names if Path(name).name in EVENT_FILES] or names
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} files that may be the events, and must hold one, or one of "
            f"{', '.join(EVENT_FILES)}: {', '.join(found[:5])}"
        )
    return found[0]
