"""Ids as a user has them: integers, strings or UUIDs, in any sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ssept_ext.utils.checks import shown

RawId: TypeAlias = int | str | UUID
RawIds: TypeAlias = Sequence[RawId] | NDArray[Any]

TYPES: dict[str, type] = {"int64": int, "str": str, "uuid": UUID}
"""Of all ids of one kind, by the name that files give it."""


def id_list(name: str, ids: Any, in_order: bool = True) -> list[Any]:
    """Return ids as a list, given as any iterable of ids or one-dimensional array or column; a set has no order.

    Raises
    ------
    TypeError
        If it is something else, such as one id, a mapping or a data frame; names the argument.
    """
    has_rows = len(getattr(ids, "shape", (0,))) != 1
    is_one = isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable)
    has_no_order = in_order and isinstance(ids, (set, frozenset))
    if has_rows or is_one or has_no_order or isinstance(ids, Mapping):
        value = f" {shown(ids)}" if is_one else ""
        raise TypeError(f"{name} must be a sequence of ids, got {type(ids).__name__}{value}")
    to_list = getattr(ids, "tolist", None) or getattr(ids, "to_pylist", None)
    return list(ids) if to_list is None else list(to_list())


def is_raw_id(key: object) -> bool:
    """Whether it is of a type that an id may have."""
    return isinstance(key, (int, np.integer, str, UUID)) and not isinstance(key, bool)


def is_of(key: object, kinds: Any) -> bool:
    """Whether an id is of these types and, if an integer, not beyond int64."""
    if not isinstance(key, kinds) or isinstance(key, bool):
        return False
    return not isinstance(key, (int, np.integer)) or -(2**63) <= int(key) < 2**63


def typed(raw: RawIds, noun: str) -> tuple[str, NDArray[Any]]:
    """Return the name of the ids' type, and the ids as int64 or objects; an error names one that does not fit."""
    if isinstance(raw, np.ndarray) and np.can_cast(raw.dtype, np.int64) and raw.dtype != bool:
        return "int64", raw.astype(np.int64)  # a copy, whatever becomes of `raw`
    keys = id_list("raw", raw)
    kinds = {type(key): key for key in keys} or {int: 0}
    names = [name for name, kind in TYPES.items() if kinds.keys() == {kind}]
    if not names:
        examples = ", ".join(f"{shown(key)} of type {kind.__name__}" for kind, key in kinds.items())
        raise TypeError(f"{noun}s must be all int, all str or all UUID, got {examples}")
    if names == ["int64"]:
        try:
            return "int64", np.array(keys, np.int64)
        except OverflowError:
            bad = next(key for key in keys if not -(2**63) <= key < 2**63)
            raise ValueError(f"{noun} {bad} is beyond int64: make it a string") from None
    return names[0], object_array(keys)


def object_array(values: list[Any]) -> NDArray[Any]:
    """Return an array of objects, whatever NumPy would make of them."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
