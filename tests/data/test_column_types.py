"""The types that columns of ids and times may have; others are refused by the column's name."""

from datetime import datetime, timezone
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.interactions import COLUMNS, histories, of_rows

from ssept_ext.data.interactions import Interactions


@pytest.mark.parametrize(
    ("ids", "kind", "expected"),
    [
        (pd.Series(["x", "y", "x"], dtype="category"), "str", ["x", "y"]),
        (pd.Categorical(["y", "x", "y"], categories=["unused", "x", "y"]), "str", ["y", "x"]),
        (np.array([5, 4, 5], np.uint16), "int64", [5, 4]),
        ([2**62 + 1, -3, 2**62 + 1], "int64", [2**62 + 1, -3]),
        ([UUID(int=2), UUID(int=1), UUID(int=2)], "uuid", [UUID(int=2), UUID(int=1)]),
    ],
)
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_ids_of_any_type_keep_it(library, ids, kind, expected):
    frame = pd.DataFrame({"user": ids, "item": 1})
    if library == "polars":
        pl = pytest.importorskip("polars")
        frame = pl.DataFrame({"user": ids if kind == "uuid" else frame["user"], "item": [1, 1, 1]})

    interactions = Interactions.from_dataframe(frame, timestamp=None)

    assert interactions.user_ids.type == kind
    assert interactions.user_ids.raw.tolist() == expected


def test_uuids_in_parquet_keep_their_type(tmp_path):
    raw = [UUID(int=9), UUID(int=8)]
    column = pa.array([key.bytes for key in raw], pa.binary(16))
    pa.parquet.write_table(pa.table({"user": column, "item": [1, 1]}), tmp_path / "log.parquet")

    interactions = Interactions.from_parquet(tmp_path / "log.parquet", timestamp=None)

    assert interactions.user_ids.raw.tolist() == raw


@pytest.mark.parametrize(
    "times",
    [
        [2.5, -1.0, 2.25],
        pd.to_datetime(["2020-01-03", "2020-01-01", "2020-01-02"]),
        pd.to_datetime(["2020-01-03", "2020-01-01", "2020-01-02"]).tz_localize("Asia/Tokyo"),
        [datetime(2020, 1, 3).date(), datetime(2020, 1, 1).date(), datetime(2020, 1, 2).date()],
        [2**60 + 2, 2**60, 2**60 + 1],
    ],
    ids=["floats", "datetimes", "with a zone", "dates", "beyond the precision of floats"],
)
def test_times_of_any_type_sort(times):
    frame = pd.DataFrame({"user": 1, "item": ["late", "early", "mid"], "timestamp": times})

    assert histories(Interactions.from_pandas(frame)) == {1: ["early", "mid", "late"]}


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("user", None, "column 'user', row 2: id is missing, got None"),
        ("item", None, "column 'item', row 2: id is missing"),
        ("timestamp", None, "column 'timestamp', row 2: time is missing"),
        ("timestamp", float("inf"), "column 'timestamp', row 2: time must be finite, got inf"),
    ],
)
def test_what_is_missing_is_named_by_column_and_row(library, column, value, message):
    options = {"strict": False} if library == "polars" else {}
    make_frame = pytest.importorskip(library).DataFrame
    columns = COLUMNS | {column: [*COLUMNS[column][:2], value, *COLUMNS[column][3:]]}

    with pytest.raises(ValueError, match=message):
        Interactions.from_dataframe(make_frame(columns, **options))


@pytest.mark.parametrize("column", ["user", "item"])
@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["a", "b", "", "c", "d"]),
        pa.array(["a", "b", "", "c", "d"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0, 0]), pa.array(["a", None])),
    ],
    ids=["text", "a category", "a category of nothing"],
)
def test_an_empty_id_is_missing(column, ids):
    with pytest.raises(ValueError, match=f"column '{column}', row 2: id is missing"):
        Interactions.from_dataframe(pa.table(COLUMNS | {column: ids}))


def test_a_category_that_is_there_twice_is_one_id():
    ids = pa.DictionaryArray.from_arrays(pa.array([0, 2, 1]), pa.array(["a", "b", "a"]))

    interactions = Interactions.from_dataframe(
        pa.table({"user": ids, "item": [1, 2, 3]}), timestamp=None
    )

    assert histories(interactions) == {"a": [1, 2], "b": [3]}


def test_ids_that_differ_only_in_writing_are_counted_in_a_warning():
    with pytest.warns(UserWarning, match=r"column 'user': 3 ids .* such as '1' and '1.0'.*stay"):
        interactions = of_rows(
            *((key, 1) for key in ("1", "1.0", "ann ", "ann", "01")), timestamp=None
        )

    assert interactions.user_ids.raw.tolist() == ["1", "1.0", "ann ", "ann", "01"]


@pytest.mark.parametrize(
    ("times", "limit"),
    [
        (np.array([1.6e18, 1.5]), 2**53),
        (np.array([1.6e9, 1.5], np.float32), 2**24),
        (np.array([4096.0, 1.5], np.float16), 2**11),
    ],
)
def test_times_that_floats_have_rounded_are_refused(times, limit):
    with pytest.raises(
        ValueError, match=f"column 'timestamp', row 0: time is beyond {limit}, where"
    ):
        Interactions.from_dataframe(pa.table({"user": [1, 1], "item": [1, 2], "timestamp": times}))


NOON = datetime(2020, 1, 1, 12)


UNORDERED = {
    "a boolean among numbers": [1, True],
    "a boolean of NumPy among numbers": [np.True_, 1],
    "an integer that floats round": [2**60 + 1, 1.5],
    "an integer beyond int64": [np.uint64(2**63), 1],
    "numbers and text": [1, "2020-01-01"],
    "dates and datetimes": [NOON.date(), NOON],
    "datetimes with and without a zone": [NOON, NOON.replace(tzinfo=timezone.utc)],
    "objects with nanoseconds": [pd.Timestamp(2), pd.Timestamp(1)],
    "complex numbers": [1j, 2j],
    "lists": [[1], [2]],
    "dicts": [{}, {}],
    "objects": [object(), object()],
}


@pytest.mark.parametrize("values", UNORDERED.values(), ids=UNORDERED.keys())
@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("column", ["user", "timestamp"])
def test_objects_that_would_be_changed_are_refused(library, values, column):
    module = pytest.importorskip(library)
    objects = pd.Series(values, dtype=object)
    if library == "polars":
        objects = module.Series(column, values, module.Object)
    frame = module.DataFrame(
        {"user": [1, 2], "item": [1, 2], "timestamp": [1, 2]} | {column: objects}
    )

    with pytest.raises((TypeError, ValueError), match=f"column '{column}'"):
        Interactions.from_dataframe(frame)


def test_numbers_of_several_types_are_one_column():
    frame = pd.DataFrame({"user": pd.Series([np.int8(2), 3, 2], dtype=object), "item": [1, 2, 3]})
    frame["timestamp"] = pd.Series([2, np.float64(1.5), 1], dtype=object)

    assert histories(Interactions.from_pandas(frame)) == {2: [3, 1], 3: [2]}


@pytest.mark.parametrize(
    "ids",
    [
        pd.array(["2020", "2021"], "period[Y]"),
        pd.interval_range(0, 2),
        pd.to_timedelta([1, 2]),
        pd.Categorical([1.5, 2.5]),
        pd.Categorical([True, False]),
        pd.Categorical([1, "a"]),
        pd.array([True, False], "boolean"),
        pd.array([1, None], "Int64"),
        np.array([1j, 2j]),
        [b"a", b"b"],
    ],
    ids=lambda ids: str(getattr(ids, "dtype", "bytes")),
)
def test_pandas_columns_that_are_no_ids_are_named(ids):
    with pytest.raises((TypeError, ValueError), match="column 'user'"):
        Interactions.from_pandas(pd.DataFrame({"user": ids, "item": [1, 2]}), timestamp=None)


def test_a_nan_time_is_refused_by_row():
    pl = pytest.importorskip("polars")

    with pytest.raises(ValueError, match="column 'timestamp', row 1: time must be finite, got nan"):
        Interactions.from_polars(
            pl.DataFrame({"user": [1, 1], "item": [1, 2], "timestamp": [1.0, float("nan")]})
        )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user": [1.0, 2.0]},
            "column 'user' holds double: ids must be integers, strings or UUIDs",
        ),
        ({"item": [True, False]}, "column 'item' holds bool"),
        ({"item": ["a", 1]}, "column 'item' holds values of more than one type"),
        ({"user": [UUID(int=1), "b"]}, "column 'user' holds values of more than one type"),
        (
            {"timestamp": ["2020-01-01", "x"]},
            "column 'timestamp' holds .*, as '2020-01-01': times must be",
        ),
        ({"timestamp": [True, False]}, "column 'timestamp' holds bool"),
    ],
)
def test_columns_of_the_wrong_type_are_named(columns, message):
    frame = pd.DataFrame({"user": [1, 2], "item": [1, 2], "timestamp": [1, 2]} | columns)

    with pytest.raises(TypeError, match=message):
        Interactions.from_pandas(frame)


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_ids_and_times_beyond_int64_are_refused(column):
    frame = pd.DataFrame({"user": [1], "item": [1], "timestamp": [1]} | {column: [2**63]})

    with pytest.raises(ValueError, match=f"column '{column}': .*beyond int64"):
        Interactions.from_pandas(frame)
