"""Columns of events, converted from Arrow arrays."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.utils.optional import require


class Codes(NamedTuple):
    """A column of ids: that of event e is `ids[codes[e]]`. `ids` are in the order of first appearance."""

    codes: IntArray
    """(E,)"""
    ids: NDArray[Any]
    """(n,) int64, or object holding str or UUID"""


class RawEvents(NamedTuple):
    """Events in the order of their source."""

    users: Codes
    items: Codes
    times: NDArray[Any] | None
    """(E,) int64, float64 or datetime64, finite; None if events are in time order"""


class Columns(NamedTuple):
    """Names of the columns, or keys, that hold user, item and time."""

    user: str
    item: str
    time: str | None


def arrow() -> Any:
    """Import PyArrow and those of its modules that are used here."""
    for module in ("pyarrow.compute", "pyarrow.csv", "pyarrow.parquet"):
        require(module, "data")
    return require("pyarrow", "data")


def encode_ids(column: Any, name: str) -> Codes:
    """Convert an Arrow column of integers, strings, categories of these, or UUIDs (16 bytes).

    Raises
    ------
    TypeError
        If the column holds something else; names the column.
    ValueError
        If an id is missing or does not fit in int64; names the column, and the row, counted from 0.
    """
    pa = arrow()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    _refuse_nulls(column, name, "id")
    categorical = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if categorical else column.type
    is_uuid, is_integer = kind == pa.binary(16), pa.types.is_integer(kind)
    if not (is_uuid or is_integer or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise TypeError(f"column {name!r} holds {kind}: ids must be integers, strings or UUIDs")
    if categorical:
        # Encoded again, because categories may be in any order and may be unused.
        encoded = column.indices.dictionary_encode()
        values = column.dictionary.take(encoded.dictionary)
    else:
        encoded = column.dictionary_encode()
        values = encoded.dictionary
    codes: IntArray = encoded.indices.to_numpy().astype(np.int64)
    if is_uuid:
        return Codes(codes, object_array([UUID(bytes=key) for key in values.to_pylist()]))
    if not is_integer:
        return Codes(codes, object_array(values.to_pylist()))
    try:
        return Codes(codes, values.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        largest = pa.compute.max(values).as_py()
        raise ValueError(f"column {name!r}: id {largest} is beyond int64") from None


def take_times(column: Any, name: str) -> NDArray[Any]:
    """Convert an Arrow column of times to int64, float64 or datetime64.

    Raises
    ------
    TypeError
        If the column holds neither numbers, dates nor datetimes; names the column.
    ValueError
        If a time is missing, NaN or infinite; names the column, and the row, counted from 0.
    """
    pa = arrow()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _refuse_nulls(column, name, "time")
    kind = column.type
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {name!r}: a time is beyond int64: {error}") from None
    if pa.types.is_floating(kind):
        times: NDArray[Any] = column.cast(pa.float64()).to_numpy()
        if not np.isfinite(times).all():
            row = int(np.flatnonzero(~np.isfinite(times))[0])
            raise ValueError(f"column {name!r}, row {row}: time must be finite, got {times[row]}")
        return times
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    example = f", as {column[0].as_py()!r}" if len(column) else ""
    raise TypeError(
        f"column {name!r} holds {kind}{example}: times must be numbers, dates or datetimes"
    )


def _refuse_nulls(column: Any, name: str, what: str) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(
            f"column {name!r}, row {row}: {what} is missing, got {column[row].as_py()}"
        )


def object_array(values: list[Any]) -> NDArray[Any]:
    column = np.empty(len(values), object)
    column[:] = values
    return column
