"""Times of events as integers, the form in which models read them."""

from __future__ import annotations

from datetime import date, datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.utils.checks import MAX_INT

Time = int | float | date | np.datetime64
"""A time that a caller gives; a `datetime` is a date, and without a time zone it is UTC."""


_DAY = 86_400

_SECONDS = {"Y": 366 * _DAY, "M": 31 * _DAY, "W": 7 * _DAY, "D": _DAY, "h": 3600, "m": 60}
"""The most seconds in a unit of datetime64, of those that are longer than a second."""

_EPOCH = np.datetime64(0, "Y")


def whole_times(times: NDArray[Any]) -> IntArray:
    """Return times as int64: the array itself if it is of int64, and datetimes as whole seconds since 1970.

    Parts of a unit or of a second are rounded down, which keeps the order.

    Raises
    ------
    ValueError
        If a time is missing, not finite or out of the range of int64; names it.
    """
    times = np.asarray(times)
    if times.dtype.kind == "M":
        bad = np.isnat(times)
        unit, step = np.datetime_data(times.dtype)
        if (
            unit in _SECONDS
        ):  # some may overflow, of which NumPy 2.5 says that there is one, and older ones nothing
            bad |= np.abs(times.astype(np.int64)) > MAX_INT // (step * _SECONDS[unit])
        whole = np.where(bad, _EPOCH, times).astype("datetime64[s]").view(np.int64)
    elif times.dtype.kind == "f":
        bad = ~((times >= -(2.0**63)) & (times < 2.0**63))
        whole = np.floor(np.where(bad, 0, times)).astype(np.int64)
    elif times.dtype.kind in "iu":
        if np.can_cast(times.dtype, np.int64):
            return times.astype(np.int64, copy=False)
        bad = times > np.iinfo(np.int64).max
        whole = times.astype(np.int64)
    else:
        raise ValueError(f"times must be numbers or datetimes, got {times.dtype}")
    if bad.any():
        raise ValueError(f"a time must be finite and fit into int64, got {times[bad][0]}")
    return whole


def to_times(name: str, times: Any) -> IntArray:
    """Return a sequence of times as integers, datetimes in seconds; a TypeError or ValueError names what is no time."""
    given = times if isinstance(times, np.ndarray) else list(times)
    if any(isinstance(time, date) for time in given):
        given = np.array([_utc(time) for time in given], "datetime64[us]")
    try:
        return whole_times(np.asarray(given) if len(given) else np.zeros(0, np.int64))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _utc(time: Any) -> Any:
    if isinstance(time, datetime) and time.tzinfo is not None:
        return time.astimezone(timezone.utc).replace(tzinfo=None)
    return time
