"""Data frames as results, made with whichever library is installed: pandas, Polars or PyArrow."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.utils.optional import require

_FRAMES = ("pandas", "polars", "pyarrow")


def take_rows(ids: list[Any], row: IntArray, id_map: IdMap) -> NDArray[Any]:
    """Return `ids[row]` as an array, of the dtype of the map's ids if all fit."""
    try:
        return np.fromiter(ids, np.int64 if id_map.type == "int64" else object, len(ids))[row]
    except OverflowError:  # integers beyond int64, of unknown users
        return np.fromiter(ids, object, len(ids))[row]


def to_frame(columns: dict[str, NDArray[Any]]) -> Any:
    """Make a data frame, with the first of pandas, Polars and PyArrow that is installed."""
    narwhals = require("narwhals", "data")
    backend = next((name for name in _FRAMES if find_spec(name)), _FRAMES[-1])
    # Arrays are not copied; of objects, some libraries only take lists.
    plain = {name: x.tolist() if x.dtype == object else x for name, x in columns.items()}
    return narwhals.from_dict(plain, backend=backend).to_native()
