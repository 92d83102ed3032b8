"""Finding and opening files of events, compressed or not."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO, cast

from ssept_ext.utils.checks import shown

EVENT_FILES = ("u.data", "ratings.dat", "ratings.csv", "rating.csv")
"""Names of the file of events in the folders and archives of MovieLens, GroupLens' and Kaggle's."""

_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "a Parquet file",
}
"""What a file is that begins with these bytes."""


@contextmanager
def open_events(
    path: str | os.PathLike[str], *, archives: bool = False
) -> Iterator[tuple[str, BinaryIO]]:
    """Open a file once, as a pipe allows, and yield its name and its bytes, decompressed if they are gzip's.

    With `archives`, `path` may be a zip archive or a folder that holds a single file or one named as in `EVENT_FILES`.
    A ValueError names what is damaged, is no text, or holds no file of events, or several.
    """
    path = Path(path)
    if archives and path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        path = path / _choose(path, names)
    source = str(path)
    with ExitStack() as stack:
        try:
            stream: BinaryIO = stack.enter_context(path.open("rb"))
            if not stream.seekable():
                stream = io.BytesIO(stream.read())
            if archives and _head(stream).startswith(b"PK") and zipfile.is_zipfile(stream):
                source, stream = _open_member(stream, path, stack)
            if _head(stream).startswith(b"\x1f\x8b"):
                stream = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=stream)))
            _check_text(source, _head(stream))
            yield source, stream
        except (EOFError, OSError, zlib.error, zipfile.BadZipFile, struct.error) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # it is not there or cannot be opened
            raise ValueError(f"{source} is damaged: {error}") from error


def _head(stream: BinaryIO) -> bytes:
    head = stream.read(1024)
    stream.seek(0)
    return head


def _check_text(source: str, head: bytes) -> None:
    kinds = [kind for magic, kind in _NOT_TEXT.items() if head.startswith(magic)]
    if kinds or b"\0" in head:
        raise ValueError(
            f"{source} is of no known format: it is {kinds[0] if kinds else 'binary'}, and must be text "
            "in UTF-8, plain or compressed with gzip"
        )


def _open_member(stream: BinaryIO, path: Path, stack: ExitStack) -> tuple[str, BinaryIO]:
    """Return the name and the bytes of the file of events in a zip archive."""
    source = str(path)
    try:
        archive = stack.enter_context(zipfile.ZipFile(stream))
        name = _choose(path, [info.filename for info in archive.infolist() if not info.is_dir()])
        source = f"{path}/{name}"
        return source, cast(BinaryIO, stack.enter_context(archive.open(name)))
    # Encrypted, compressed in another way, or with a damaged name.
    except (RuntimeError, UnicodeError, IndexError) as error:
        raise ValueError(f"{source} cannot be read, unpack it first: {error}") from error


def _choose(path: Path, names: list[str]) -> str:
    visible = [name for name in names if not _is_hidden(name)]
    found = [name for name in visible if PurePath(name).name in EVENT_FILES] or visible
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} files that may be the events, and must hold one, or one of "
            f"{', '.join(EVENT_FILES)}: {', '.join(map(shown, found[:5]))}"
        )
    return found[0]


def _is_hidden(name: str) -> bool:
    """Whether a file was put there by an operating system: .DS_Store, all of __MACOSX and the like."""
    system = (".", "__MACOSX", "Thumbs.db", "desktop.ini")
    return any(part.startswith(system) for part in PurePath(name).parts)


def bad_line(source: str, number: int, reason: str, line: bytes) -> ValueError:
    """Make an error that shows the beginning of a line and its number, counted from 1."""
    text = line[:1024].decode(errors="replace").rstrip("\r\n")
    return ValueError(f"{source}, line {number}: {reason}: {shown(text)}")
