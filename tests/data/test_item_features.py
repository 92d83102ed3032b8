"""Features of items from files and data frames."""

import gzip

import numpy as np
import pandas as pd
import pytest

from ssept_ext import ItemFeatures

pa = pytest.importorskip("pyarrow")

COLUMNS = {
    "sku": ["a", "b", "c"],
    "title": ["Red shoes", "blue Shoes!", None],
    "year": [1995, 1996, 1995],
    "tags": [["x"], ["x", "y"], []],
    "price": [0.5, None, 0.25],
    "vector": [[1.0, 2.0], [3.0, 4.0], None],
    "sold": [True, False, None],
}


def features_of(columns, **options):
    return ItemFeatures.from_dataframe(pa.table(columns), **options)


def by_hand(frame, columns, num_hashed=64):
    """Features of some columns alone."""
    return features_of(
        {name: frame[name] for name in ["sku", *columns]}, num_hashed=num_hashed
    ).matrix


def test_floats_and_lists_of_floats_are_taken_as_they_are_in_the_order_of_names():
    found = by_hand(COLUMNS, ["vector", "price"])

    assert found.tolist() == [[0.5, 1, 2], [0, 3, 4], [0.25, 0, 0]]
    assert found.dtype == np.float32


def test_words_are_hashed_whatever_their_case_and_order():
    columns = {"sku": [1, 2, 3], "title": ["Red shoes", "SHOES, red red", "blue shoes"]}

    red, other, blue = features_of(columns).matrix

    assert np.array_equal(red, other)
    assert red @ blue == pytest.approx(0.5)  # one word of two
    assert np.count_nonzero(red) == 2


def test_the_same_text_has_other_features_in_another_column_and_the_same_ones_in_any_file():
    one = features_of({"sku": [1], "title": ["red"]}).matrix
    again = features_of({"sku": [7, 8], "title": ["blue", "red"]}).matrix
    other = features_of({"sku": [1], "colour": ["red"]}).matrix

    assert np.array_equal(one[0], again[1])
    assert not np.array_equal(one, other)
    assert np.flatnonzero(one[0]).tolist() == [348]  # which no version may change


def test_categories_are_whole_texts_integers_and_booleans():
    columns = {"sku": [1, 2, 3], "tags": [["sci fi"], ["sci", "fi"], ["sci fi", "fi"]]}

    first, second, third = features_of(columns).matrix

    assert first @ second == 0
    assert first @ third == pytest.approx(0.5**0.5)
    years = features_of({"sku": [1, 2, 3], "year": [1995, 1996, 1995]}).matrix
    assert (years @ years.T).round().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    sold = features_of({"sku": [1, 2, 3], "sold": [True, False, None]}).matrix
    assert np.abs(sold).sum(1).tolist() == [1, 1, 0]


def test_columns_are_added_up_whatever_their_order():
    whole = features_of(COLUMNS, num_hashed=64)

    turned = features_of({"sku": COLUMNS["sku"]} | dict(reversed(COLUMNS.items())), num_hashed=64)
    hashed = sum(by_hand(COLUMNS, [name])[:, -64:] for name in ("title", "year", "tags", "sold"))
    np.testing.assert_allclose(whole.matrix[:, 3:], hashed, rtol=1e-6)
    assert np.array_equal(turned.matrix, whole.matrix)
    assert whole.matrix.shape == (3, 67)


@pytest.mark.parametrize(
    ("library", "make"), [("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "table")]
)
def test_any_data_frame_gives_the_same_features(library, make):
    make_frame = getattr(pytest.importorskip(library), make)
    frame = make_frame({name: COLUMNS[name] for name in ("sku", "title", "price")})

    found = ItemFeatures.of(frame)

    assert found.item_ids.raw.tolist() == ["a", "b", "c"]
    expected = features_of({name: COLUMNS[name] for name in ("sku", "title", "price")})
    assert np.array_equal(found.matrix, expected.matrix)


CSV = 'sku,title,price\na,"Red, shoes",0.5\nb,blue Shoes!,\n'
TSV = "sku\ttitle\tprice\na\tRed, shoes\t0.5\nb\tblue Shoes!\t\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.csv", CSV.encode()),
        ("items.tsv", TSV.encode()),
        ("items.tsv.gz", gzip.compress(TSV.encode(), mtime=0)),
        ("items.csv", b"\xef\xbb\xbf" + CSV.encode()),
    ],
)
def test_text_gives_the_same_features_as_a_data_frame(write, name, content):
    found = ItemFeatures.read(write(name, content))

    columns = {"sku": ["a", "b"], "title": ["Red, shoes", "blue Shoes!"], "price": [0.5, None]}
    assert np.array_equal(found.matrix, features_of(columns).matrix)
    assert found.item_ids.raw.tolist() == ["a", "b"]


def test_ids_of_text_are_integers_only_if_all_are(write):
    integers = ItemFeatures.read(write("a.csv", "id,x\n7,.5\n12,.5\n"))
    texts = ItemFeatures.read(write("b.csv", "id,x\n007,.5\n12,.5\n"))

    assert integers.item_ids.raw.tolist() == [7, 12]
    assert texts.item_ids.raw.tolist() == ["007", "12"]


def test_parquet_gives_the_same_features_as_a_data_frame(tmp_path):
    pa.parquet.write_table(pa.table(COLUMNS), tmp_path / "items.parquet")

    found = ItemFeatures.read(tmp_path / "items.parquet")

    assert np.array_equal(found.matrix, features_of(COLUMNS).matrix)


def test_another_column_may_hold_the_ids():
    columns = {"price": [0.5], "sku": ["a"]}

    assert features_of(columns, item="sku").item_ids.raw.tolist() == ["a"]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"sku": ["a"]},
            ValueError,
            r"the data frame must have a column 'sku' of ids and others, got \['sku'\]",
        ),
        ({"sku": ["a", "b", "a"], "x": [0.1] * 3}, ValueError, "item 'a' is there more than once"),
        ({"sku": ["a", None], "x": [0.1] * 2}, ValueError, "row 1: id is missing"),
        (
            {"sku": ["a"], "year": [1995.0]},
            ValueError,
            "column 'year': .* within -100 and 100, got 1995",
        ),
        ({"sku": ["a"], "x": [-np.inf]}, ValueError, "column 'x': .* got -inf"),
        ({"sku": ["a", "b"], "x": [[0.1], [0.1, 0.2]]}, ValueError, r"one length, got \[1, 2\]"),
        (
            {"sku": ["a"], "x": pd.to_datetime(["2020-01-01"])},
            TypeError,
            "column 'x': features must be texts, numbers",
        ),
    ],
)
def test_what_cannot_be_features_is_named(columns, error, message):
    with pytest.raises(error, match=message):
        features_of(columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: .*Empty CSV file"),
        ("a.csv", "id,x\n1,2,3\n", "a.csv: CSV parse error: Expected 2 columns, got 3"),
        ("a.csv", "id,x\n1,.5\n1,.5\n", "a.csv: item 1 is there more than once"),
        ("a.csv", b"\xff\xfei\0", "UTF-16"),
        ("a.tsv.gz", gzip.compress(TSV.encode(), mtime=0)[:-9], "is damaged"),
        ("a.parquet", "id,x\n", "a.parquet: "),
    ],
)
def test_a_damaged_file_is_named(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        ItemFeatures.read(write(name, content))


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(FileNotFoundError, match=name):
            ItemFeatures.read(tmp_path / name)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 2]], r"a row for each of 2 ids, got shape \(1, 2\)"),
        ([1, 2], r"got shape \(2,\)"),
        ([[1], ["x"]], "must be a matrix of numbers"),
        ([[1], [np.nan]], "those of item 'b' are not"),
    ],
)
def test_a_wrong_matrix_is_named(matrix, message):
    with pytest.raises(ValueError, match=message):
        ItemFeatures.from_arrays(["a", "b"], matrix)


def test_ids_of_another_type_are_refused():
    features = ItemFeatures.from_arrays([7], [[1]])

    with pytest.raises(TypeError, match="by ids of type str, as the events are, got int64"):
        features.rows_of(ItemFeatures.from_arrays(["7"], [[1]]).item_ids)
