"""Columns of any types: taken as they are, or refused by name."""

import warnings
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.interactions import histories, sorted_histories

from ssept_ext import Interactions

COLUMNS = st.sampled_from(
    [
        *(
            pa.int8(),
            pa.uint16(),
            pa.int64(),
            pa.uint64(),
            pa.float16(),
            pa.float32(),
            pa.float64(),
        ),
        *(pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.binary(16), pa.null()),
        *(
            pa.date32(),
            pa.timestamp("s"),
            pa.timestamp("ns", "UTC"),
            pa.duration("s"),
            pa.time32("s"),
        ),
        *(pa.decimal128(5, 1), pa.list_(pa.int64()), pa.struct([("a", pa.int64())])),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64())),
    ]
).flatmap(
    lambda kind: st.lists(st.one_of(st.none(), values_of(kind)), min_size=3, max_size=3).map(
        lambda values: array_of(values, kind)
    )
)


def values_of(kind):
    if pa.types.is_dictionary(kind):
        return values_of(kind.value_type)
    if kind == pa.uint64():
        return st.sampled_from([0, 1, 2**63, 2**64 - 1])
    if pa.types.is_integer(kind):
        return st.integers(0, 3)
    if pa.types.is_floating(kind):
        return st.sampled_from([0.0, 1.5, 2.0, float("nan"), float("inf")])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return st.sampled_from(["", "a", "b", "1", "1.0", "\0"])
    if pa.types.is_binary(kind) or kind == pa.binary(16):
        return st.sampled_from([bytes(16), bytes(range(16))])
    if pa.types.is_date(kind):
        return st.sampled_from([date(1970, 1, 1), date(2020, 2, 29)])
    if pa.types.is_timestamp(kind):
        return st.sampled_from([datetime(1970, 1, 1), datetime(2020, 2, 29, 23)])
    plain = {pa.bool_(): True, pa.decimal128(5, 1): Decimal("1.5"), pa.null(): None}
    if pa.types.is_list(kind):
        return st.just([1])
    if pa.types.is_struct(kind):
        return st.just({"a": 1})
    return st.just(plain.get(kind, 1))


def array_of(values, kind):
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


@given(user=COLUMNS, item=COLUMNS, timestamp=COLUMNS)
@settings(max_examples=400)
@example(
    user=pa.array([1, 2, 1]), item=pa.array(["b", "a", "c"]), timestamp=pa.array([2.0, 1.0, 1.5])
)
@example(
    user=pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["a", None, "a"])),
    item=pa.array([1, 2, 3]),
    timestamp=pa.array([1, 2, 3]),
)
def test_columns_of_any_type_are_taken_as_they_are_or_refused_by_name(user, item, timestamp):
    table = pa.table({"user": user, "item": item, "timestamp": timestamp})
    rows = [tuple(row.values()) for row in table.to_pylist()]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = histories(Interactions.from_dataframe(table))
    except (ValueError, TypeError) as error:
        refusal = str(error)
    else:
        refusal = None

    if refusal is None:
        assert all(value not in (None, "") for row in rows for value in row)
        assert found == sorted_histories(
            [(raw_id(user), raw_id(item), time) for user, item, time in rows]
        )
    else:
        assert any(repr(name) in refusal for name in table.column_names)


def raw_id(value):
    return UUID(bytes=value) if isinstance(value, bytes) else value
