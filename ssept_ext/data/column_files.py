"""Writes columns to CSV and Parquet files, some rows at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require

Columns = dict[str, NDArray[Any]]
"""Columns of a data frame, all of one length."""


def check_format(path: str | os.PathLike[str]) -> str:
    """Return how the name of a file for `write_columns` ends.

    Raises
    ------
    ValueError
        If it is neither .csv nor .parquet.
    ImportError
        If pyarrow, which writes Parquet, is not installed; it comes with `ssept_ext[data]`.
    """
    suffix = Path(path).suffix
    if suffix == ".parquet":
        require("pyarrow.parquet", "data")
    elif suffix != ".csv":
        raise ValueError(f"{path}: the name of the file must end in .csv or .parquet")
    return suffix


def write_columns(path: str | os.PathLike[str], blocks: Iterable[Columns]) -> None:
    """Write blocks of rows, at least one, of the same columns; UUIDs become text. The file appears when it is whole.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError, ImportError
        As `check_format`.
    """
    write = _write_parquet if check_format(path) == ".parquet" else _write_csv
    replace_file(Path(path), partial(write, blocks))


def _write_csv(blocks: Iterable[Columns], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, block in enumerate(blocks):
            if not number:
                writer.writerow(block)
            writer.writerows(zip(*map(_plain, block.values()), strict=True))


def _write_parquet(blocks: Iterable[Columns], path: Path) -> None:
    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    with ExitStack() as stack:
        writer = None
        for block in blocks:
            names, values = list(block), [_plain(column) for column in block.values()]
            if writer is None:
                table = pyarrow.table(values, names)
                writer = stack.enter_context(parquet.ParquetWriter(path, table.schema))
            else:
                table = pyarrow.table(values, schema=writer.schema)
            writer.write_table(table)


def _plain(values: NDArray[Any]) -> list[Any]:
    """Values as files have them: numbers, and texts of whatever else."""
    plain: list[Any] = values.tolist()
    return plain if values.dtype != object else [str(value) for value in plain]
