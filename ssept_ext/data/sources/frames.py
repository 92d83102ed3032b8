"""Columns of data frames of any library, converted to Arrow."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np

from ssept_ext.data.sources.columns import arrow
from ssept_ext.utils.optional import require


def to_arrow(column: Any) -> Any:
    """Convert a narwhals Series to an Arrow array."""
    pa, nw = arrow(), require("narwhals", "data")
    try:
        if column.dtype != nw.Object:
            return column.to_arrow()
        # Not to_arrow(): Polars would return the addresses of its Python objects.
        values = column.to_list()
        _refuse_what_arrow_would_change([value for value in values if value is not None])
        if any(isinstance(value, UUID) for value in values):
            return pa.array([value and value.bytes for value in values], pa.binary(16))
        return pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise TypeError(
            f"column {column.name!r} holds values of more than one type, or of one that is neither an "
            f"id nor a time: {error}"
        ) from None


def _refuse_what_arrow_would_change(values: list[Any]) -> None:
    """Raise a TypeError for booleans among numbers, datetimes among dates, and what Arrow cuts off datetimes."""
    kinds = set(map(type, values))
    if len(kinds) > 1 and not any(
        all(issubclass(kind, base) and kind is not bool for kind in kinds)
        for base in (str, (int, float, np.integer, np.floating))
    ):
        raise TypeError(", ".join(sorted(kind.__name__ for kind in kinds)))
    if len({getattr(value, "tzinfo", None) is None for value in values}) > 1:
        raise TypeError("datetimes with a time zone and without")
    if any(getattr(value, "nanosecond", 0) for value in values):
        raise TypeError("objects with nanoseconds: make the column datetime64")
