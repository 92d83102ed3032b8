"""Reading events from text: lines of user, item and, optionally, time."""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import MAX_ID, Histories, IntArray
from ssept_ext.data.sources.columns import INTEGER, NUMBER, check_exact
from ssept_ext.data.sources.opening import bad_line, open_events
from ssept_ext.data.times import whole_times


class _Columns(NamedTuple):
    users: IntArray
    items: IntArray
    times: NDArray[np.int64] | NDArray[np.float64] | None


def group_by_user(users: IntArray, items: IntArray, times: NDArray[np.generic] | None) -> Histories:
    """Sort events by user, then by time, then by their order in the file; times are those of `whole_times`."""
    order = np.lexsort((users,) if times is None else (times, users))
    sorted_users = users[order]
    starts = np.flatnonzero(np.diff(sorted_users, prepend=0))
    offsets = np.append(starts, len(users))
    times = None if times is None else whole_times(times[order])
    return Histories(sorted_users[starts], offsets, items[order], times)


def read_events(filename: str | os.PathLike[str], col_sep: str | None) -> _Columns:
    """Read the columns of a file, plain or compressed with gzip; a ValueError names the file and a bad line."""
    with open_events(filename) as (_, file):
        data = file.read()
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise ValueError(f"{filename} is empty")
    separator = None if col_sep is None else col_sep.encode()
    columns = _parse_digits(data, separator)
    return _parse_lines(data, separator, filename) if columns is None else columns


def _parse_digits(data: bytes, separator: bytes | None) -> _Columns | None:
    """Parse lines that consist of digits and separators, ten times as fast as `_parse_lines`.

    Returns None if there are other lines, which `_parse_lines` has to read or to refuse.
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
    rows: list[tuple[Any, ...]] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _parse_line(line, separator)
            if rows and len(row) != len(rows[0]):
                raise ValueError(f"{len(row)} columns after lines of {len(rows[0])}")
        except ValueError as error:
            raise bad_line(str(filename), number, str(error), line) from None
        rows.append(row)
    users, items, *times = zip(*rows, strict=True)
    try:
        numbers = _to_numbers(times[0]) if times else None
    except ValueError as error:
        raise ValueError(f"{filename}: {error}") from None
    return _Columns(np.array(users, np.int64), np.array(items, np.int64), numbers)


def _parse_line(line: bytes, separator: bytes | None) -> tuple[Any, ...]:
    """Parse `user item` or `user item time`, whose time stays text; a ValueError says what is wrong."""
    fields = line.rstrip().split(separator)
    if len(fields) not in (2, 3):
        raise ValueError(f"2 or 3 columns expected, got {len(fields)}")
    # int() would take 1_0 and blanks too
    ids = [int(field) if re.fullmatch(rb"[0-9]{1,18}", field) else 0 for field in fields[:2]]
    for noun, number in zip(("user", "item"), ids, strict=True):
        if not 1 <= number <= MAX_ID:
            raise ValueError(f"{noun} id must be an integer from 1 to {MAX_ID}")
    times = [field.decode(errors="replace") for field in fields[2:]]
    for time in times:
        if not (re.fullmatch(NUMBER, time) and -(2**63) <= Decimal(time) < 2**63):
            raise ValueError("time must be a number from -2**63 to 2**63 - 1")
    return (*ids, *times)


def _to_numbers(times: Sequence[str]) -> NDArray[np.int64] | NDArray[np.float64]:
    if all(re.fullmatch(INTEGER, time) for time in times):
        return np.array([*map(int, times)], np.int64)
    numbers = np.array([*map(float, times)])
    check_exact(times, numbers)
    return numbers
