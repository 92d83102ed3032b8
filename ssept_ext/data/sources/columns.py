"""Columns of events, converted from Arrow arrays."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.texts import Texts
from ssept_ext.utils.checks import shown
from ssept_ext.utils.optional import require

INTEGER_ID = r"^(0|-?[1-9][0-9]{0,18})$"  # 007 is a string: its zeros would be lost
INTEGER = r"^-?[0-9]+$"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


IdCodes: TypeAlias = NDArray[np.int32] | IntArray
"""Numbers of ids, in the order of their first appearance."""

_PERHAPS_LOOKALIKE = r"^[^!-~]|[^!-~]$|^\+|^-?0[0-9]|^-?[0-9]+\.0*$"
"""What every text matches that is written otherwise than `warn_of_lookalikes` would write it, and few others."""


class Codes(NamedTuple):
    """A column of ids: that of event e is `ids.raw[codes[e]]`. `ids` are in the order of first appearance."""

    codes: IdCodes
    """(E,)"""
    ids: IdMap


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

    def among(self, available: Sequence[str], source: str) -> list[str]:
        """Return the distinct names; a ValueError if `source` does not have each of them exactly once."""
        wanted: list[Any] = list(dict.fromkeys(self if self.time is not None else self[:2]))
        for name in wanted:
            if available.count(name) != 1:
                times = f"{available.count(name)} columns" if name in available else "no column"
                raise ValueError(f"{source} has {times} {name!r} among {shown(list(available))}")
        return wanted


def arrow() -> Any:
    """Import PyArrow and those of its modules that are used here."""
    for module in ("pyarrow.compute", "pyarrow.csv", "pyarrow.parquet"):
        require(module, "data")
    return require("pyarrow", "data")


def encode_ids(column: Any, name: str) -> Codes:
    """Convert an Arrow column of integers, strings, categories of these, or UUIDs (16 bytes).

    A TypeError names a column that holds something else; a ValueError names the column, and the row from 0, where an
    id is missing or beyond int64.
    """
    pa = arrow()
    if pa.types.is_dictionary(column.type) or isinstance(column.type, pa.BaseExtensionType):
        column = _one_chunk(column)
    if isinstance(column, pa.ExtensionArray) and column.type.storage_type == pa.binary(16):
        column = column.storage
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = column.dictionary_decode()
    _refuse_nulls(column, name, "id")
    categorical = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if categorical else column.type
    is_uuid, is_integer = kind == pa.binary(16), pa.types.is_integer(kind)
    is_string = kind in (pa.string(), pa.large_string(), pa.string_view())
    if not (is_uuid or is_integer or is_string):
        raise TypeError(f"column {name!r} holds {kind}: ids must be integers, strings or UUIDs")
    codes, values = _encode(column.indices if categorical else column)
    if categorical:  # categories may be in any order, unused, or there twice
        again, values = _encode(column.dictionary.take(values))
        codes = again[codes]
    if is_string and (empty := values.index("").as_py()) >= 0:
        row = int((codes == empty).argmax())
        raise ValueError(f"column {name!r}, row {row}: id is missing, got ''")
    if is_uuid or is_string:
        if is_string and _any_match(values, _PERHAPS_LOOKALIKE):
            warn_of_lookalikes(values.to_pylist(), name)
        return Codes(codes, IdMap.of_arrays("uuid" if is_uuid else "str", _to_texts(values), name))
    try:
        return Codes(codes, IdMap.of_arrays("int64", values.cast(pa.int64()).to_numpy(), name))
    except pa.ArrowInvalid:
        largest = pa.compute.max(values).as_py()
        raise ValueError(f"column {name!r}: id {largest} is beyond int64") from None


def _to_texts(values: Any) -> Texts:
    """Return the bytes of an Arrow array of strings or UUIDs, which are not copied."""
    pa = arrow()
    binary = values.cast(pa.large_binary())
    _, offsets, data = binary.buffers()
    bounds = np.frombuffer(offsets, np.int64)[binary.offset : binary.offset + len(binary) + 1]
    first, last = bounds[0], bounds[-1]
    return Texts(bounds - first, np.frombuffer(data, np.uint8)[first:last] if data else _NOTHING)


_NOTHING = np.zeros(0, np.uint8)


def _encode(column: Any) -> tuple[NDArray[np.int32], Any]:
    """Return the place of each value among the distinct ones, and these, in the order of their first appearance."""
    encoded = column.dictionary_encode()
    chunks = encoded.chunks if isinstance(encoded, arrow().ChunkedArray) else [encoded]
    if not chunks:
        return np.zeros(0, np.int32), arrow().array([], column.type)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    return codes, chunks[0].dictionary  # which is that of all chunks


def parse_ids(text: Any) -> Any:
    """Convert an Arrow column of texts to int64 if all are plain integers; else return it as it is."""
    with suppress(arrow().ArrowInvalid):  # no integer, or beyond int64: a hash, which is a name
        text[:1].cast(arrow().int64())  # Arrow goes on to the end of the column when this fails
        numbers = text.cast(arrow().int64())
        if numbers.cast(text.type).equals(text):  # 007 is a string: its zeros would be lost
            return numbers
    return text


def join_ids(parts: list[Any]) -> Any:
    """Join what `parse_ids` returned for the parts of a column, as if it had been asked for the whole."""
    pa = arrow()
    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        parts = [part.cast(pa.string()) for part in parts]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def warn_of_lookalikes(ids: Collection[str], name: str) -> None:
    """Warn of ids that differ only in blanks around them or in how a number is written, as `1` and `1.0` do."""
    odd: dict[str, str] = {}
    pairs = []
    for key in ids:
        plain = _plainly(key)
        if plain != key and odd.setdefault(plain, key) != key:
            pairs.append((odd[plain], key))
    pairs = [(key, odd[key]) for key in ids if key in odd] + pairs
    if pairs:
        one, other = pairs[0]
        warnings.warn(
            f"column {name!r}: {len(pairs)} ids differ from another one only in how they are written, such as "
            f"{shown(one)} and {shown(other)}; they stay different ids",
            stacklevel=2,
        )


def _plainly(key: str) -> str:
    number = re.fullmatch(r"\s*\+?(-?)0*([0-9]+)(?:\.0*)?\s*", key)
    return number[1] + number[2] if number else key.strip()


def take_times(column: Any, name: str) -> NDArray[Any]:
    """Convert an Arrow column of times to int64, float64 or datetime64.

    A TypeError names a column that holds something else; a ValueError names the column, and the row from 0, where a
    time is missing, not finite, or beyond the integers that its type tells apart.
    """
    pa = arrow()
    column = _one_chunk(column)
    kind = column.type
    _refuse_nulls(column, name, "time")
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {name!r}: a time is beyond int64: {error}") from None
    if pa.types.is_floating(kind):
        given = column.to_numpy()
        times: NDArray[Any] = given.astype(np.float64)
        limit = 2.0 ** (np.finfo(given.dtype).nmant + 1)
        rounded = f"is beyond {limit:.0f}, where {kind} misses integers: give integers"
        for bad, reason in (
            (~np.isfinite(times), "must be finite"),
            (np.abs(times) > limit, rounded),
        ):
            if bad.any():
                row = int(bad.argmax())
                raise ValueError(f"column {name!r}, row {row}: time {reason}, got {times[row]}")
        return times
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    example = f", as {shown(column[0].as_py())}" if len(column) else ""
    raise TypeError(
        f"column {name!r} holds {kind}{example}: times must be numbers, dates or datetimes"
    )


def _refuse_nulls(column: Any, name: str, what: str) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(f"column {name!r}, row {row}: {what} is missing, got None")


def parse_times(text: Any) -> Any:
    """Convert an Arrow column of texts to an Arrow array of numbers, dates or datetimes.

    A ValueError if not all are one of these, or if they would lose their order.
    """
    pa = arrow()
    text = _one_chunk(text)
    if (numbers := parse_ids(text)) is not text:
        return numbers
    if _all_match(text, INTEGER):
        return text.cast(pa.int64())
    if _all_match(text, NUMBER):
        if not is_exact(text):
            distinct = text.unique()
            check_exact(distinct.to_pylist(), distinct.cast(pa.float64()).to_numpy())
        return text.cast(pa.float64())
    for kind in _date_types():
        with suppress(pa.ArrowInvalid):
            return text.cast(kind)
    raise ValueError("times are neither all numbers nor all dates in ISO 8601 of one precision")


def is_exact(text: Any) -> bool:
    """Whether all of an Arrow column of numbers have so few digits that different ones are different in float64."""
    return _all_match(text, r"^[+-]?[0-9.]{1,15}$")


def time_kind(text: str) -> str | None:
    """Return what a time in a text is, as a noun with its article; None if it is no time."""
    if re.fullmatch(INTEGER, text):
        return "an integer" if -(2**63) <= Decimal(text) < 2**63 else None
    if re.fullmatch(NUMBER, text):
        return "a number" if np.isfinite(float(text)) else None
    pa = arrow()
    for kind in _date_types():
        with suppress(pa.ArrowInvalid):
            pa.scalar(text).cast(kind)
            return "a date with a zone" if getattr(kind, "tz", None) else "a date"
    return None


def is_int64(text: str) -> bool:
    """Whether a text is an integer of 64 bits, written as integer ids are."""
    return bool(re.fullmatch(INTEGER_ID, text)) and -(2**63) <= int(text) < 2**63


def _date_types() -> list[Any]:
    pa = arrow()
    zones, units = (None, "UTC"), ("s", "ms", "us", "ns")
    return [pa.date32(), *(pa.timestamp(unit, zone) for zone in zones for unit in units)]


def check_exact(texts: Sequence[str], numbers: NDArray[np.float64]) -> None:
    """Check that different numbers in texts are finite and different in float64 too, which else loses their order."""
    if not np.isfinite(numbers).all():
        raise ValueError("times must be finite")
    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    first: dict[int, str] = {}
    for at in np.flatnonzero(count[place] > 1).tolist():
        other = first.setdefault(place[at], texts[at])
        if Decimal(other) != Decimal(texts[at]):
            raise ValueError(
                f"times {shown(other)} and {shown(texts[at])} are the same number in float64, which "
                "loses their order: make all times integers"
            )


def _all_match(text: Any, pattern: str) -> bool:
    compute = arrow().compute
    return bool(compute.all(compute.match_substring_regex(text, pattern)).as_py())


def _any_match(text: Any, pattern: str) -> bool:
    compute = arrow().compute
    return bool(compute.any(compute.match_substring_regex(text, pattern)).as_py())


def _one_chunk(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, arrow().ChunkedArray) else column
