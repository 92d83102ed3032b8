"""Files that are replaced in one step: a process killed at any moment leaves either the old file or the new one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssept_ext.utils.checks import shown

Write = Callable[[Path], object]

DIGEST_LENGTH = 16
"""Number of hexadecimal digits of a digest, in a file or its name."""

TEMPORARY = ".ssept_ext"
"""End of the names of temporary folders."""


def replace_file(path: Path, write: Write) -> None:
    """Let `write` make a temporary file, sync it to disk, and rename it to `path`; other writers wait.

    Raises
    ------
    OSError
        If the file cannot be written; names `path`, not the temporary file.
    """
    with locked(path.parent):
        put_file(path, write)


def put_file(path: Path, write: Write) -> None:
    """As `replace_file`, for callers that have `locked` the folder."""
    _put(path, write, lambda _: path)


def store_file(folder: Path, stem: str, suffix: str, write: Write) -> str:
    """Write a file that is named `stem-DIGEST.suffix` after its content, and return its name; call it within `locked`.

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
    return sha.hexdigest()[:DIGEST_LENGTH]


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record and its digest, which `read_json` verifies; call it in `replace_file` or `put_file`."""
    path.write_text(json.dumps({**record, "digest": _json_digest(record)}, indent=2) + "\n")


def read_json(
    path: Path, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Read a record that `write_json` wrote, or a version of this package that wrote no digests.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, was changed, lacks keys or has unknown ones; names it and the keys.
    """
    try:
        record = json.loads(path.read_bytes())
        found = record.pop("digest", None) if isinstance(record, dict) else None
        expected = _json_digest(record)
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON, or nested too deeply
        raise ValueError(f"{path} is damaged: {error}") from error
    fields: dict[str, Any] = record if isinstance(record, dict) else {}
    if missing := sorted(set(required) - set(fields)):
        raise ValueError(f"{path} is damaged or was not written by ssept_ext: it lacks {missing}")
    if unknown := sorted(set(fields) - {*required, *optional}):
        raise ValueError(
            f"{path} has the unknown keys {shown(unknown)}: was it written by a later version of ssept_ext?"
        )
    if found not in (None, expected):
        raise ValueError(
            f"{path} is damaged, or was edited: its content does not match its digest (if you edited "
            f'it on purpose, remove "digest" from it)'
        )
    return fields


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread writes to a folder, and keep them waiting.

    The lock ends with its process. What killed processes have left of their writing is removed.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _lock(handle, fcntl.LOCK_EX):  # else these may be of others who write now
            for left in folder.glob(f".*{TEMPORARY}"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        _lock(handle, fcntl.LOCK_UN)  # also for processes forked meanwhile
        os.close(handle)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards. The lock ends with its process, also if that is killed.

    Raises
    ------
    BlockingIOError
        If another process, or another thread, holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
            raise BlockingIOError(f"{path} was held until now")  # and its holder has removed it
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    """Lock or unlock a file or folder; False if its file system has no locks, as some network file systems."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _put(path: Path, write: Write, final: Callable[[Path], Path]) -> Path:
    temporary = None
    try:
        # A temporary folder, because some writers, such as safetensors, make temporary files of their own.
        temporary = tempfile.mkdtemp(TEMPORARY, f".{path.name}.", path.parent)
        part = Path(temporary) / path.name
        write(part)
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        place = final(part)
        part.replace(place)
    except OSError as error:
        if error.errno is None:
            raise OSError(f"cannot write {path}: {error}") from error
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path.parent)
    return place


def _json_digest(record: Any) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames survive a power failure, in the order in which they were made."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
