"""Mapping between raw ids and the numbers 1..n that index embedding tables."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.histories import IntArray
from ssept_ext.data.raw_ids import (
    TYPES,
    RawId,
    RawIds,
    id_list,
    is_of,
    is_raw_id,
    object_array,
    typed,
)
from ssept_ext.data.texts import Texts
from ssept_ext.utils.checks import check_one_of, shown
from ssept_ext.utils.files import DIGEST_LENGTH, read_json, replace_file

FORMAT = 1

_UTF_8 = ("utf-8", "surrogatepass")  # a `str` may hold what UTF-8 has no bytes for

_CHUNK = 1 << 16  # ids that are objects at a time

_HASHED_UP_TO = 1_000_000  # ids, in a dict of 100 MB


class IdMap:
    """A two-way mapping between raw ids and the numbers 1..n; 0 is padding.

    The raw ids are all int64, all strings or all UUIDs. The first `encode` makes a hash table to look them up or, of
    more than a million, a sorted array, which takes a tenth of the memory. Only NumPy is needed: serving a model does
    not need the packages that read its training data.

    Attributes
    ----------
    raw
        (n,) int64, or object if the ids are `str` or `uuid.UUID`; number i belongs to `raw[i - 1]`. Objects take over
        ten times the memory of the ids themselves, and are made at the first access.
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
        self.type, self.raw = typed(raw, noun)
        if not _distinct(self.raw):
            twice, times = Counter(self.raw.tolist()).most_common(1)[0]
            raise ValueError(f"{noun} {shown(twice)} is there {times} times: ids must be distinct")

    @classmethod
    def of_arrays(cls, kind: str, ids: IntArray | Texts, noun: str = "id") -> IdMap:
        """Number int64, strings in UTF-8 or UUIDs of 16 bytes, which are not copied and must be distinct."""
        id_map = cls.__new__(cls)
        id_map.noun, id_map.type = noun, kind
        if isinstance(ids, Texts):
            id_map.texts = ids
        else:
            id_map.raw = ids
        return id_map

    def only(self, places: IntArray, noun: str) -> IdMap:
        """Number some of the ids, in this order."""
        ids = self.raw[places] if self.type == "int64" else self.texts.take(places)
        return IdMap.of_arrays(self.type, ids, noun)

    def joined(self, other: IdMap) -> tuple[IdMap, IntArray]:
        """Number the ids of another map that this one does not hold after its own.

        Returns
        -------
        tuple[IdMap, IntArray]
            The map of all ids, and the number in it of each id of `other`.

        Raises
        ------
        TypeError
            If the ids of the other map are of another type.
        """
        if self.type != other.type:
            raise TypeError(
                f"{self.noun} ids must be of type {self.type}, as those known, got {other.type}"
            )
        numbers = self.encode(other.raw, "zero")
        new = np.flatnonzero(numbers == 0)
        if not len(new):
            return self, numbers
        numbers[new] = len(self) + 1 + np.arange(len(new))
        added = other.only(new, self.noun)
        if self.type == "int64":
            raw = np.append(self.raw, added.raw)
            return IdMap.of_arrays(self.type, raw, self.noun), numbers
        return IdMap.of_arrays(self.type, self.texts.joined(added.texts), self.noun), numbers

    @cached_property
    def raw(self) -> NDArray[Any]:  # documented above
        return object_array(self._objects(self.texts))

    @cached_property
    def texts(self) -> Texts:
        """The ids as bytes, of a map whose ids are not int64: strings in UTF-8, or UUIDs."""
        return Texts.of(_to_bytes(self.type, self.raw.tolist()))

    def _objects(self, texts: Texts) -> list[Any]:
        if self.type == "uuid":
            return [UUID(bytes=key) for key in texts.strings()]
        return [key.decode(*_UTF_8) for key in texts.strings()]

    @cached_property
    def _sorted(self) -> tuple[NDArray[Any], IntArray]:
        """Ids or, of texts, their hashes in ascending order, and their places in `raw`."""
        keys = self.raw if self.type == "int64" else self.texts.hashes()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def __len__(self) -> int:
        return len(self.raw) if self.type == "int64" else len(self.texts.offsets) - 1

    def __repr__(self) -> str:
        return f"IdMap({len(self):,} {self.noun}s, {self.type})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdMap):
            return NotImplemented
        if self.type != other.type or self.type == "int64":
            return self.type == other.type and np.array_equal(self.raw, other.raw)
        mine, theirs = self.texts, other.texts
        same_bounds = np.array_equal(mine.offsets, theirs.offsets)
        return same_bounds and np.array_equal(mine.data, theirs.data)

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
        numbers = self._look_up(keys) if len(self) <= _HASHED_UP_TO else self._search(keys)
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
        if "raw" in self.__dict__:
            return self.raw[index - 1]
        return object_array(self._objects(self.texts.take(index.ravel() - 1))).reshape(index.shape)

    @cached_property
    def _numbers(self) -> dict[RawId, int]:
        return dict(zip(self.raw.tolist(), range(1, len(self.raw) + 1), strict=True))

    def _look_up(self, keys: list[Any]) -> IntArray:
        """Return the numbers of ids, 0 for unknown ones."""
        known: Iterable[Any] = keys
        if not set(map(type, keys)) <= {int, str, UUID}:  # True and 1.0 equal 1, but are no ids
            known = (key if is_raw_id(key) else (None, key) for key in keys)
        return np.fromiter(map(self._numbers.get, known, repeat(0)), np.int64, len(keys))

    def _search(self, keys: list[Any]) -> IntArray:
        """As `_look_up`, without a Python object for each id of the map."""
        kinds = (int, np.integer) if self.type == "int64" else TYPES[self.type]
        places = [place for place, key in enumerate(keys) if is_of(key, kinds)]
        numbers = np.zeros(len(keys), np.int64)
        numbers[places] = self._find([keys[place] for place in places])
        return numbers

    def _find(self, ids: list[Any]) -> IntArray:
        keys, order = self._sorted
        numbers = np.zeros(len(ids), np.int64)
        if self.type == "int64":
            asked = np.array(ids, np.int64)
            place = np.searchsorted(keys, asked)
            inside = np.flatnonzero(place < len(keys))
            known = inside[keys[place[inside]] == asked[inside]]
            numbers[known] = 1 + order[place[known]]
            return numbers
        texts = Texts.of(_to_bytes(self.type, ids))
        hashes = texts.hashes()
        place, end = (np.searchsorted(keys, hashes, side) for side in ("left", "right"))  # type: ignore[call-overload]
        left = np.flatnonzero(place < end)
        while len(left):  # twice, if another id has the same hash
            found = order[place[left]]
            same = self.texts.take(found).same(texts.take(left))
            numbers[left[same]] = 1 + found[same]
            place[left] += 1
            left = left[~same]
            left = left[place[left] < end[left]]
        return numbers

    @cached_property
    def digest(self) -> str:
        """The first 64 bits of a SHA-256 of the ids and their type, in hexadecimal."""
        # That of `json.dumps(self.to_dict())`, without a text of them all.
        sha = hashlib.sha256(f'{{"type": "{self.type}", "ids": ['.encode())
        for part in self.json_parts():
            sha.update(part)
        sha.update(b"]}")
        return sha.hexdigest()[:DIGEST_LENGTH]

    def json_parts(self) -> Iterator[bytes]:
        """Yield what `json.dumps` writes between the brackets of a list of the ids, some ids at a time."""
        for first in range(0, len(self), _CHUNK):
            if first:
                yield b", "
            rows = slice(first, min(first + _CHUNK, len(self)))
            if self.type == "str" and (texts := self.texts.part(rows)).are_plain():
                yield b'"' + b'", "'.join(texts.strings()) + b'"'
            else:
                ids = self.decode(np.arange(rows.start, rows.stop) + 1)
                yield json.dumps(self._plain(ids))[1:-1].encode()

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be stored as JSON and read again by `from_dict`."""
        return {"type": self.type, "ids": self._plain(self.raw)}

    def _plain(self, raw: NDArray[Any]) -> list[Any]:
        return [str(key) for key in raw] if self.type == "uuid" else raw.tolist()

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
        # Without the objects, which take over ten times the memory.
        return id_map if declared == "int64" else cls.of_arrays(declared, id_map.texts, noun)


def save_id_maps(
    path: str | os.PathLike[str], users: IdMap, items: IdMap, histories: str | None = None
) -> None:
    """Write both maps to one JSON file, replaced in one step, with the digest of the histories that they belong to."""
    maps = {"users": users, "items": items}
    of_each = {name: {"type": ids.type, "ids": f"@{name}"} for name, ids in maps.items()}
    record = {
        "format": FORMAT,
        **of_each,
        **({} if histories is None else {"histories": histories}),
    }

    def write(part: Path) -> None:
        sha = hashlib.sha256()
        for piece in _to_json(record, maps, sort_keys=True):
            sha.update(piece)
        digest = {"digest": sha.hexdigest()[:DIGEST_LENGTH]}
        with part.open("wb") as file:
            file.writelines(_to_json(record | digest, maps))
            file.write(b"\n")

    replace_file(Path(path), write)


def _to_json(
    record: dict[str, Any], maps: Mapping[str, IdMap], sort_keys: bool = False
) -> Iterator[bytes]:
    """Yield what `write_json` would write or digest, a part of the ids of "@NAME" at a time."""
    for piece in re.split('("@[a-z]+")', json.dumps(record, sort_keys=sort_keys)):
        if piece.startswith('"@'):
            yield b"["
            yield from maps[piece[2:-1]].json_parts()
            yield b"]"
        else:
            yield piece.encode()


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


def _to_bytes(kind: str, ids: Sequence[Any]) -> list[bytes]:
    return [key.bytes for key in ids] if kind == "uuid" else [key.encode(*_UTF_8) for key in ids]
