"""User histories: read from a file or given, checked, and split into train, validation and test."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ID = 2**31 - 1
"""Largest user or item id. Ids index embedding tables: larger ones are hashes, to be renumbered."""

IntArray = NDArray[np.int64]


class SASRecDataSet:
    """Histories of users, oldest event first, and their leave-one-out split.

    The interface of recommenders' `SASRecDataSet`, except that the file is read and split when the
    data set is made, so that a bad file fails here and no attribute is ever empty because `split`
    is still to come. Ids start at 1 and need not be consecutive: users without events have no entry
    in the dicts.

    Attributes
    ----------
    User : dict[int, list[int]], user id to all item ids in time order.
    Items : set[int], the items of all histories.
    usernum, itemnum : int, the largest user and item id; tables need one row more.
    user_train, user_valid, user_test : dict[int, list[int]] with the same keys as `User`. The last
        event is the test item and the one before it the validation item; users with fewer than 3
        events train only, with empty lists in the other two.
    filename, col_sep : as given.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        col_sep: str | None = " ",
        *,
        histories: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Read `filename`, or take `histories`.

        Parameters
        ----------
        filename : lines `user item`, each user's in time order, or `user item time`, sorted here by
            time (int or float; events of the same time stay in the order of the file). Read with
            gzip if the name ends in .gz. Blank lines are skipped.
        col_sep : what stands between columns, one or more characters; None for any run of
            whitespace.
        histories : user id to item ids in time order, instead of a file.

        Raises
        ------
        ValueError : a malformed line, with file name, line number and text; ids that are not
            integers from 1 to `MAX_ID`; a file or `histories` without events.
        """
        if (filename is None) == (histories is None):
            raise ValueError("give either filename or histories, and not both")
        if col_sep == "":
            raise ValueError(
                "col_sep must be at least one character, or None for whitespace, got ''"
            )
        self.filename = filename
        self.col_sep = col_sep
        if histories is None:
            assert filename is not None
            users, offsets, items = _group(*_read(filename, col_sep))
        else:
            users, offsets, items = to_csr(histories)
            if not len(items):
                raise ValueError(f"histories of {len(users)} users hold no events")
        self.usernum = int(users.max())
        self.itemnum = int(items.max())
        bounds, events = offsets.tolist(), items.tolist()
        self.Items: set[int] = set(events)
        self.User: dict[int, list[int]] = {
            user: events[bounds[row] : bounds[row + 1]] for row, user in enumerate(users.tolist())
        }
        self.split()

    def split(self) -> None:
        """Make `user_train`, `user_valid` and `user_test` from `User`.

        The constructor calls it; call it again only after changing `User`.
        """
        self.user_train: dict[int, list[int]] = {}
        self.user_valid: dict[int, list[int]] = {}
        self.user_test: dict[int, list[int]] = {}
        for user, items in self.User.items():
            cut = len(items) - 2 if len(items) >= 3 else len(items)
            self.user_train[user] = items[:cut]
            self.user_valid[user] = items[cut : cut + 1]
            self.user_test[user] = items[cut + 1 :]


class Histories(NamedTuple):
    """Histories in a row: user `users[r]` has `items[offsets[r]:offsets[r + 1]]`, oldest first."""

    users: IntArray
    """(R,)"""
    offsets: IntArray
    """(R + 1,)"""
    items: IntArray
    """(E,)"""

    def part(self, rows: slice) -> Histories:
        """Some of the rows, consecutive ones."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Histories(
            self.users[rows], offsets - offsets[0], self.items[offsets[0] : offsets[-1]]
        )


def to_csr(histories: Mapping[int, Sequence[int]]) -> Histories:
    """Lay out `histories` (user id to item ids) in arrays, users in the order of the mapping.

    Raises ValueError for ids that are not integers from 1 to `MAX_ID`, naming user and id.
    """
    users = np.array(list(histories))
    items = np.array(list(chain.from_iterable(histories.values())))
    for ids in (users, items):
        integers = ids.ndim == 1 and ids.dtype.kind in "iu"
        if ids.size and not (integers and ids.min() >= 1 and ids.max() <= MAX_ID):
            raise ValueError(f"histories: {_first_bad_id(histories)}")
    offsets = np.zeros(len(histories) + 1, np.int64)
    np.cumsum([len(history) for history in histories.values()], out=offsets[1:])
    return Histories(users.astype(np.int64), offsets, items.astype(np.int64))


def _first_bad_id(histories: Mapping[int, Sequence[int]]) -> str:
    for user, history in histories.items():
        for name, value in (("user", user), *(("item", item) for item in history)):
            if not (isinstance(value, (int, np.integer)) and 1 <= value <= MAX_ID):
                return (
                    f"{name} id must be an integer from 1 to {MAX_ID}, got {value!r} (user {user})"
                )
    raise AssertionError("every id is good")


class _Columns(NamedTuple):
    users: IntArray
    items: IntArray
    times: NDArray[np.int64] | NDArray[np.float64] | None


def _group(users: IntArray, items: IntArray, times: NDArray[np.generic] | None) -> Histories:
    """Sort events by user, then by time, then by their order in the file."""
    order = np.lexsort((users,) if times is None else (times, users))
    ids, starts = np.unique(users[order], return_index=True)
    return Histories(ids, np.append(starts, len(users)), items[order])


def _read(filename: str | os.PathLike[str], col_sep: str | None) -> _Columns:
    data = Path(filename).read_bytes()
    if str(filename).endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{filename} is not a whole gzip file: {error}") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise ValueError(f"{filename} is empty")
    separator = None if col_sep is None else col_sep.encode()
    columns = _parse_digits(data, separator)
    return _parse_lines(data, separator, filename) if columns is None else columns


def _parse_digits(data: bytes, separator: bytes | None) -> _Columns | None:
    """Parse lines of nothing but digits and separators, the usual case, ten times as fast.

    None means that some line needs `_parse_lines`, to be read or to be refused.
    """
    if data.translate(None, b"0123456789\r\n" + (separator or b" \t")):
        return None
    delimiter = None
    if separator is not None:
        data, delimiter = data.replace(separator, b" "), " "
    try:
        table = np.loadtxt(io.BytesIO(data), np.int64, comments=None, delimiter=delimiter, ndmin=2)
    except ValueError:
        return None
    ids = table[:, :2]
    if table.shape[1] not in (2, 3) or ids.min() < 1 or ids.max() > MAX_ID:
        return None
    return _Columns(table[:, 0], table[:, 1], table[:, 2] if table.shape[1] == 3 else None)


def _parse_lines(
    data: bytes, separator: bytes | None, filename: str | os.PathLike[str]
) -> _Columns:
    rows: list[tuple[int | float, ...]] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _parse_line(line, separator)
            if rows and len(row) != len(rows[0]):
                raise ValueError(f"{len(row)} columns after lines of {len(rows[0])}")
        except ValueError as error:
            text = line.decode(errors="replace")
            raise ValueError(f"{filename}, line {number}: {error}: {text!r}") from None
        rows.append(row)
    users, items, *times = zip(*rows, strict=True)
    return _Columns(
        np.array(users, np.int64), np.array(items, np.int64), np.array(times[0]) if times else None
    )


def _parse_line(line: bytes, separator: bytes | None) -> tuple[int | float, ...]:
    """(user, item) or (user, item, time); a ValueError says what is wrong."""
    fields = line.rstrip().split(separator)
    if len(fields) not in (2, 3):
        raise ValueError(f"2 or 3 columns expected, got {len(fields)}")
    user, item = _parse_id("user", fields[0]), _parse_id("item", fields[1])
    return (user, item) if len(fields) == 2 else (user, item, _parse_time(fields[2]))


def _parse_id(name: str, field: bytes) -> int:
    try:
        value = int(field)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_ID:
        raise ValueError(f"{name} id must be an integer from 1 to {MAX_ID}")
    return value


def _parse_time(field: bytes) -> int | float:
    for number in (int, float):
        try:
            time = number(field)
        except ValueError:
            continue
        if -(2**63) <= time < 2**63:
            return time
    raise ValueError("time must be a number from -2**63 to 2**63 - 1")
