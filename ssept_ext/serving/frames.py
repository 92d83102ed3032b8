"""Data frames as results, made with whichever library is installed: pandas, Polars or PyArrow."""

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
    """Return `ids[row]` as an array of the original Python objects."""
    taken = np.empty(len(ids), object)
    taken[:] = list(ids)
    return taken[row]


def to_frame(columns: dict[str, NDArray[Any]]) -> Any:
    """Make a data frame, with the first of pandas, Polars and PyArrow that is installed."""
    narwhals = require("narwhals", "data")
    backend = next((name for name in _FRAMES if find_spec(name)), _FRAMES[-1])
    lists = {name: values.tolist() for name, values in columns.items()}
    return narwhals.from_dict(lists, backend=backend).to_native()
