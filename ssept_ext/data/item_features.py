"""Features of items, by raw id: embeddings that were computed elsewhere, or columns that are hashed."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.id_map import IdMap
from ssept_ext.data.raw_ids import RawIds
from ssept_ext.data.sources.columns import arrow, encode_ids, parse_ids
from ssept_ext.data.sources.frames import to_arrow
from ssept_ext.data.sources.opening import open_events
from ssept_ext.utils.checks import check_at_least, shown
from ssept_ext.utils.optional import require

NUM_HASHED = 512
"""Default number of features that texts and categories are hashed to."""

_LARGEST = 100
"""Largest absolute value of a number in a column. Numbers are not scaled, and large ones make training diverge."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """A row of numbers for each of some items, by raw id: what is known of an item apart from its events.

    Use `from_arrays` for embeddings, and `from_dataframe`, `from_csv` or `from_parquet` for columns of any kind. These
    make the same features of equal rows, in any file, as long as the columns are the same:

    - floats, and lists of floats of one length, are taken as they are, in the order of the columns' names, and 0 where
      they are missing. They should be about as large as 1.
    - texts are sets of words, in lower case; lists of texts, integers and booleans are categories. All of these are
      hashed, with their column's name, to `num_hashed` features: each adds +1 or -1 to one (Weinberger et al., *Feature
      Hashing for Large Scale Multitask Learning*, ICML 2009). The features of a column have length 1.

    Attributes
    ----------
    item_ids
        The `IdMap` of the n items.
    matrix
        (n, F) float32, finite.

    Examples
    --------
    >>> import pyarrow as pa
    >>> frame = pa.table({"item": ["a", "b"], "title": ["Red shoes", "Blue shoes"], "price": [0.5, 0.25]})
    >>> features = ItemFeatures.from_dataframe(frame, num_hashed=16)
    >>> features
    ItemFeatures(2 items, 17 features)
    >>> features.matrix[:, 0]
    array([0.5 , 0.25], dtype=float32)
    """

    item_ids: IdMap
    matrix: NDArray[np.float32]

    @classmethod
    def of(cls, given: Any) -> ItemFeatures:
        """Return what is one already; take a mapping from raw ids to rows, or a data frame as `from_dataframe` does."""
        if isinstance(given, ItemFeatures):
            return given
        if isinstance(given, Mapping):
            rows = list(given.values())
            if len({np.shape(row) for row in rows}) != 1 or np.ndim(rows[0]) != 1:
                raise ValueError(
                    "item_features must have rows of one length, for at least one item"
                )
            return cls.from_arrays(list(given), np.stack(rows))
        return cls.from_dataframe(given)

    @classmethod
    def from_arrays(cls, item_ids: RawIds, matrix: Any) -> ItemFeatures:
        """Take the rows of a matrix, such as embeddings of texts.

        Parameters
        ----------
        item_ids
            (n,) raw ids, distinct.
        matrix
            (n, F) finite numbers.

        Raises
        ------
        TypeError
            If ids are not all integers, strings or UUIDs.
        ValueError
            If an id is there twice, or the matrix has another shape or holds something else.

        Examples
        --------
        >>> ItemFeatures.from_arrays([7, 9], [[0.5, 1], [1, 0]])
        ItemFeatures(2 items, 2 features)
        """
        ids = IdMap(item_ids, "item")
        try:
            array = np.asarray(matrix, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"item_features must be a matrix of numbers: {error}") from None
        if array.ndim != 2 or len(array) != len(ids) or array.shape[1] < 1:
            raise ValueError(
                f"item_features must be a matrix with a row for each of {len(ids)} ids, got shape {array.shape}"
            )
        finite = np.isfinite(array).all(1)
        if not finite.all():
            bad = ids.raw[int(finite.argmin())]
            raise ValueError(f"item_features must be finite, those of item {shown(bad)} are not")
        return cls(ids, array)

    @classmethod
    def from_dataframe(
        cls, frame: Any, *, item: str | None = None, num_hashed: int = NUM_HASHED
    ) -> ItemFeatures:
        """Make features of the columns of a data frame of any library that narwhals supports.

        Parameters
        ----------
        frame
            A row for each item.
        item
            Name of the column of ids; None for the first one. All others are features.
        num_hashed
            Number of features that texts and categories are hashed to, if there are any.

        Raises
        ------
        TypeError
            If `frame` is not a data frame, or a column (named) holds dates or something else.
        ValueError
            If a column is missing, an id is missing or there twice, lists of floats differ in length, a float is not
            finite or beyond 100, or `num_hashed` is below 1.
        ImportError
            If narwhals or PyArrow is missing: they come with `ssept_ext[data]`.
        """
        table = require("narwhals", "data").from_native(frame).lazy().collect()
        columns = {name: to_arrow(table[name]) for name in table.columns}
        return cls._from_columns(columns, item, num_hashed, "the data frame")

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        item: str | None = None,
        delimiter: str | None = None,
        num_hashed: int = NUM_HASHED,
    ) -> ItemFeatures:
        """Make features of the columns of delimited text with a header, plain or compressed with gzip.

        Parameters
        ----------
        path
            The file.
        delimiter
            What separates columns, one character; by default a tab if the name ends in .tsv or .tsv.gz, and else a
            comma. `"` quotes fields, but not between tabs.
        item, num_hashed
            As for `from_dataframe`. Ids are read as `Interactions.from_csv` reads them.

        Raises
        ------
        OSError
            If the file cannot be read.
        TypeError, ValueError, ImportError
            As `from_dataframe`, and if a line is malformed; names the file.
        """
        pa = arrow()
        if delimiter is None:
            delimiter = "\t" if Path(path).name.removesuffix(".gz").endswith(".tsv") else ","
        parse = {"delimiter": delimiter, "quote_char": False if delimiter == "\t" else '"'}
        try:
            with open_events(path) as (source, stream):
                start = stream.read(1 << 20)
                header = pa.csv.read_csv(
                    pa.py_buffer(start.split(b"\n")[0] + b"\n"),
                    parse_options=pa.csv.ParseOptions(**parse),
                ).column_names
                stream.seek(0)
                name = header[0] if item is None else item
                table = pa.csv.read_csv(
                    stream,
                    parse_options=pa.csv.ParseOptions(**parse),
                    convert_options=pa.csv.ConvertOptions(column_types={name: pa.string()}),
                )
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {error}") from error
        columns = dict(zip(table.column_names, table.columns, strict=True))
        if name in columns:
            columns[name] = parse_ids(columns[name])
        return cls._from_columns(columns, item, num_hashed, source)

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        *,
        item: str | None = None,
        num_hashed: int = NUM_HASHED,
    ) -> ItemFeatures:
        """Make features of the columns of a Parquet file; parameters and errors are those of `from_dataframe`."""
        pa = arrow()
        try:
            table = pa.parquet.read_table(path)
        except (FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: {error}") from error
        columns = dict(zip(table.column_names, table.columns, strict=True))
        return cls._from_columns(columns, item, num_hashed, str(path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ItemFeatures:
        """Read a file whose first column holds the ids: Parquet if its name ends in .parquet, else `from_csv`."""
        return cls.from_parquet(path) if Path(path).suffix == ".parquet" else cls.from_csv(path)

    @classmethod
    def _from_columns(
        cls, columns: Mapping[str, Any], item: str | None, num_hashed: int, source: str
    ) -> ItemFeatures:
        check_at_least("num_hashed", num_hashed, 1, 1_000_000)
        item = next(iter(columns), "") if item is None else item
        others = sorted(columns.keys() - {item})
        if item not in columns or not others:
            raise ValueError(
                f"{source} must have a column {item!r} of ids and others, got {shown(list(columns))}"
            )
        codes, ids = encode_ids(columns[item], item)
        if len(ids) < len(codes):
            (twice,) = ids.decode([1 + np.bincount(codes).argmax()]).tolist()
            raise ValueError(f"{source}: item {shown(twice)} is there more than once")
        numbers: list[NDArray[np.float32]] = []
        hashed = None
        for name in others:
            column = _decoded(columns[name])
            try:
                tokens = _tokens(column)
                if tokens is None:
                    numbers.append(_numbers(column))
                else:
                    hashed = (
                        np.zeros((len(codes), num_hashed), np.float32) if hashed is None else hashed
                    )
                    _add_hashed(hashed, name, tokens)
            except TypeError as error:
                raise TypeError(f"{source}, column {name!r}: {error}") from None
            except ValueError as error:
                raise ValueError(f"{source}, column {name!r}: {error}") from None
        return cls(ids, np.concatenate(numbers if hashed is None else [*numbers, hashed], 1))

    def __repr__(self) -> str:
        return f"ItemFeatures({len(self.item_ids):,} items, {self.matrix.shape[1]:,} features)"

    def rows_of(self, item_ids: IdMap, first: int = 1) -> NDArray[np.float32]:
        """Return the features of the items with these raw ids from a number on; those of items that are not here are 0.

        Parameters
        ----------
        item_ids
            Raw ids of I items.
        first
            The number from which on rows are wanted.

        Returns
        -------
        NDArray[np.float32]
            (I + 1 - first, F)

        Raises
        ------
        TypeError
            If the ids are of another type.
        ValueError
            If none of all items is here.
        """
        if item_ids.type != self.item_ids.type:
            raise TypeError(
                f"item_features must be by ids of type {item_ids.type}, as the events are, got {self.item_ids.type}"
            )
        wanted = item_ids.decode(np.arange(first, len(item_ids) + 1))
        place = self.item_ids.encode(wanted, "zero")
        missing = np.flatnonzero(place == 0)
        if first == 1 and len(missing) == len(wanted):
            raise ValueError(
                f"item_features have none of the {len(wanted):,} items, such as {shown(wanted[:1].tolist()[0])}"
            )
        if len(missing):
            (one,) = wanted[missing[:1]].tolist()
            warnings.warn(
                f"item_features lack {len(missing):,} of {len(wanted):,} items, such as {shown(one)}: their features "
                f"are 0",
                stacklevel=4,
            )
        return with_padding(self.matrix)[place]


def with_padding(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n + 1, F) rows after one of zeros, that of item 0."""
    return np.concatenate([np.zeros((1, rows.shape[1]), rows.dtype), rows])


def _decoded(column: Any) -> Any:
    """Return an Arrow column as one array, of values instead of categories."""
    pa = arrow()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.ChunkedArray):  # of no chunk
        column = pa.array([], column.type)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _tokens(column: Any) -> Iterable[list[str]] | None:
    """Return the words or categories of each row; None if the column holds floats, or lists of them."""
    types = arrow().types
    kind = column.type
    if _is_text(kind):
        return (_WORD.findall((text or "").lower()) for text in column.to_pylist())
    if types.is_integer(kind) or types.is_boolean(kind):
        return ([] if value is None else [str(value)] for value in column.to_pylist())
    if _is_list(kind) and (_is_text(kind.value_type) or types.is_integer(kind.value_type)):
        return ([str(x) for x in row or [] if x is not None] for row in column.to_pylist())
    return None


def _is_text(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _numbers(column: Any) -> NDArray[np.float32]:
    """(n, width) numbers of a column of floats, or of lists of floats; 0 where they are missing."""
    types, kind = arrow().types, column.type
    values = column
    count, width = len(column), 1
    if _is_list(kind):
        lists = column.to_pylist()
        lengths = {len(row) for row in lists if row is not None}
        if len(lengths) != 1:
            raise ValueError(f"lists must have one length, got {shown(sorted(lengths))}")
        (width,) = lengths
        kind = kind.value_type
        values = arrow().array(
            [x for row in lists for x in ([None] * width if row is None else row)], kind
        )
    if not (types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)):
        raise TypeError(
            f"features must be texts, numbers, booleans, or lists of texts or numbers, got {column.type}"
        )
    array = values.cast(arrow().float64()).to_numpy(zero_copy_only=False)
    array = np.where(np.isnan(array), 0, array)
    if (beyond := np.abs(array) > _LARGEST).any():
        raise ValueError(
            f"numbers are features as they are, and must be within -{_LARGEST} and {_LARGEST}, got "
            f"{array[beyond][0]:g}: scale them, or make integers or texts of them, which are categories"
        )
    return array.astype(np.float32).reshape(count, width)


def _add_hashed(features: NDArray[np.float32], name: str, tokens: Iterable[list[str]]) -> None:
    """Add the hashed words or categories of a column, with length 1 in all, to the features of each row."""
    places: dict[str, tuple[int, float]] = {}
    for row, of_row in zip(features, tokens, strict=True):
        distinct = dict.fromkeys(of_row)
        for token in distinct:
            if token not in places:
                key = f"{name}={token}".encode("utf-8", "surrogatepass")
                value = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
                places[token] = (value >> 1) % len(row), 1.0 - 2.0 * (value & 1)
            place, sign = places[token]
            row[place] += sign / len(distinct) ** 0.5
