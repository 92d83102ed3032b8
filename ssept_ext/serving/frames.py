"""Data frames of the first library that is installed: pandas, Polars or PyArrow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import RawId
from ssept_ext.utils.optional import require

_FRAMES = ("pandas", "polars", "pyarrow")


def take_rows(ids: Sequence[RawId], row: IntArray) -> NDArray[Any]:
    """`ids[row]` as they were given, whatever their type."""
    taken = np.empty(len(ids), object)
    taken[:] = list(ids)
    return taken[row]


def to_frame(columns: dict[str, NDArray[Any]]) -> Any:
    """A data frame of the first library that is installed."""
    narwhals = require("narwhals", "data")
    backend = next((name for name in _FRAMES if find_spec(name)), _FRAMES[-1])
    lists = {name: values.tolist() for name, values in columns.items()}
    return narwhals.from_dict(lists, backend=backend).to_native()
