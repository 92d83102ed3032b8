"""Mapping between raw ids and the numbers 1..n that index embedding tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.utils.checks import check_one_of, shown
from ssept_ext.utils.files import DIGEST_LENGTH, read_json, replace_file, write_json

RawId: TypeAlias = int | str | UUID
RawIds: TypeAlias = Sequence[RawId] | NDArray[Any]

FORMAT = 1

_TYPES: dict[str, type] = {"int64": int, "str": str, "uuid": UUID}


class IdMap:
    """A two-way mapping between raw ids and the numbers 1..n; 0 is padding.

    The raw ids are all int64, all strings or all UUIDs. Lookups use a hash table, so their cost does
    not grow with the number of ids. Only NumPy is needed: serving a model does not need the packages that
    read its training data.

    Attributes
    ----------
    raw
        (n,) int64, or object if the ids are `str` or `uuid.UUID`; number i belongs to `raw[i - 1]`.
    type
        "int64", "str" or "uuid".
    noun
        What the ids identify, for error messages.

    Examples
    --------
    >>> ids = IdMap(["ann", "bob"], noun="user")
    >>> ids.encode(["bob", "eve"], unknown="zero")
    array([2, 0])
    >>> ids.decode([2, 1]).tolist()
    ['bob', 'ann']
    """

    def __init__(self, raw: RawIds, noun: str = "id") -> None:
        """Number the ids in `raw` from 1, in the order given.

        Raises
        ------
        TypeError
            If an id is not an integer, a string or a UUID, or not all ids have the same type.
        ValueError
            If an id occurs more than once, or an integer does not fit in int64.
        """
        self.noun = noun
        self.type, self.raw = _typed(raw, noun)
        if not _distinct(self.raw):
            twice, times = Counter(self.raw.tolist()).most_common(1)[0]
            raise ValueError(f"{noun} {shown(twice)} is there {times} times: ids must be distinct")

    @cached_property
    def _numbers(self) -> dict[RawId, int]:
        """Built by the first `encode`, because it takes over ten times the memory of integer ids."""
        return dict(zip(self.raw.tolist(), range(1, len(self.raw) + 1), strict=True))

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"IdMap({len(self):,} {self.noun}s, {self.type})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdMap):
            return NotImplemented
        return self.type == other.type and np.array_equal(self.raw, other.raw)

    __hash__ = None  # type: ignore[assignment]  # compared by content, which may be large

    def encode(self, raw: RawIds, unknown: Literal["raise", "zero"] = "raise") -> IntArray:
        """Return the numbers of raw ids.

        Parameters
        ----------
        raw
            (N,) ids of the type of the map; `7` and `"7"` are different ids.
        unknown
            What to do with an id that is not in the map: "raise" an error, or give it number "zero",
            the padding.

        Returns
        -------
        IntArray
            (N,) int64.

        Raises
        ------
        KeyError
            If `unknown` is "raise" and an id is not in the map; names the id and its position, and how
            many others there are.
        """
        check_one_of("unknown", unknown, ("raise", "zero"))
        keys = id_list("raw", raw)
        known: Iterable[Any] = keys
        if not set(map(type, keys)) <= {int, str, UUID}:  # True and 1.0 equal 1, but are no ids
            known = (key if _is_raw_id(key) else (None, key) for key in keys)
        numbers = np.fromiter(map(self._numbers.get, known, repeat(0)), np.int64, len(keys))
        if unknown == "raise" and not numbers.all():
            bad = np.flatnonzero(numbers == 0)
            raise KeyError(
                f"{self.noun} {shown(keys[bad[0]])} at position {bad[0]} is unknown, one of {len(bad)} of "
                f"{len(keys)}: the map holds {len(self)} of type {self.type}"
            )
        return numbers

    def decode(self, numbers: Sequence[int] | IntArray) -> NDArray[Any]:
        """Return the raw ids of numbers.

        Parameters
        ----------
        numbers
            Numbers from 1 to n, in an array of any shape.

        Returns
        -------
        NDArray
            Of the same shape, int64 or objects of type `str` or `uuid.UUID`.

        Raises
        ------
        IndexError
            If a number is outside 1..n, as the padding is; names it.
        """
        given = np.asarray(numbers)
        if given.size and given.dtype.kind not in "iu":
            raise TypeError(f"{self.noun} numbers must be integers, got {given.dtype}")
        index: IntArray = given.astype(np.int64, copy=False)
        if index.size and not (index.min() >= 1 and index.max() <= len(self)):
            bad = index[(index < 1) | (index > len(self))].flat[0]
            raise IndexError(f"{self.noun} number {bad} is outside 1..{len(self)}")
        return self.raw[index - 1]

    @cached_property
    def digest(self) -> str:
        """The first 64 bits of a SHA-256 of the ids and their type, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:DIGEST_LENGTH]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be stored as JSON and read again by `from_dict`."""
        ids = self.raw.tolist()
        return {"type": self.type, "ids": [str(key) for key in ids] if self.type == "uuid" else ids}

    @classmethod
    def from_dict(cls, record: dict[str, Any], noun: str = "id") -> IdMap:
        """Restore a map from what `to_dict` returned; a ValueError if `record` is something else."""
        try:
            declared, ids = record["type"], record["ids"]
            if not isinstance(ids, list):
                raise TypeError(f"ids must be a list, got {type(ids).__name__}")
            id_map = cls([UUID(key) for key in ids] if declared == "uuid" else ids, noun)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{noun}s are not what IdMap.to_dict writes: {shown(error)}"
            ) from error
        if declared != id_map.type:
            raise ValueError(
                f"{noun}s are declared {shown(declared)} but are of type {id_map.type}"
            )
        return id_map


def save_id_maps(
    path: str | os.PathLike[str], users: IdMap, items: IdMap, histories: str | None = None
) -> None:
    """Write both maps to one JSON file, replaced in one step, with the digest of the histories that they belong to."""
    record = {"format": FORMAT, "users": users.to_dict(), "items": items.to_dict()}
    if histories is not None:
        record["histories"] = histories
    replace_file(Path(path), lambda part: write_json(part, record, indent=None))


def load_id_maps(path: str | os.PathLike[str], histories: str | None = None) -> tuple[IdMap, IdMap]:
    """Read the maps of users and items that `save_id_maps` wrote.

    A ValueError names a file that holds none, or was written for histories with another digest.
    """
    try:
        record = read_json(Path(path), ("format", "users", "items"), ("histories",))
        if record["format"] != FORMAT:
            raise ValueError(f"format {shown(record['format'])}, this version reads {FORMAT}")
        maps = IdMap.from_dict(record["users"], "user"), IdMap.from_dict(record["items"], "item")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or holds no id maps: {shown(error)}") from error
    of = record.get("histories")  # which earlier versions did not write
    if histories is not None and of not in (None, histories):
        raise ValueError(
            f"{path} has the raw ids of other data: of events with the digest {of}, got {histories}"
        )
    return maps


def _distinct(ids: NDArray[Any]) -> bool:
    if ids.dtype == object:
        return len(set(ids.tolist())) == len(ids)
    return bool((np.diff(np.sort(ids)) != 0).all())


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


def _is_raw_id(key: object) -> bool:
    return isinstance(key, (int, np.integer, str, UUID)) and not isinstance(key, bool)


def _typed(raw: RawIds, noun: str) -> tuple[str, NDArray[Any]]:
    """(type, ids) with ids int64 or object."""
    if isinstance(raw, np.ndarray) and np.can_cast(raw.dtype, np.int64) and raw.dtype != bool:
        return "int64", raw.astype(np.int64)  # a copy, whatever becomes of `raw`
    keys = id_list("raw", raw)
    kinds = {type(key): key for key in keys} or {int: 0}
    names = [name for name, kind in _TYPES.items() if kinds.keys() == {kind}]
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
