"""Prepared data in one file of flat arrays, which are mapped into memory rather than parsed.

The file has the format of safetensors. Its tensors are `offsets` and `items`, the arrays of `Histories` of users 1..U,
and `user_ids` and `item_ids`, the raw ids: int64 or, of strings in UTF-8 and of UUIDs, their bytes, where those of user
u are `user_ids.bounds[u - 1]` up to `user_ids.bounds[u]`. Data with times have a tensor `times` of the events; older
versions of the package pass over it, and read the same histories without times. All offsets, items and times are int64.
Its header names the format and the types of the ids, and has a digest of all this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data.histories import Histories
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.texts import Texts
from ssept_ext.utils.checks import shown
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.tensor_files import map_tensors, tensors_digest, write_tensors

SUFFIX = ".safetensors"
"""How the name of such a file ends."""

_FORMAT = "ssept_ext events 1"


class Prepared(NamedTuple):
    """What a prepared file holds."""

    histories: Histories
    user_ids: IdMap
    item_ids: IdMap


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of these, by its name."""
    return os.fspath(path).endswith(SUFFIX)


def save_prepared(path: str | os.PathLike[str], data: Prepared) -> None:
    """Write a file, which replaces another one in one step; an OSError if it cannot be written."""
    header = {"format": _FORMAT}
    arrays: dict[str, NDArray[Any]] = {
        "offsets": data.histories.offsets,
        "items": data.histories.items,
    }
    if data.histories.times is not None:
        arrays["times"] = data.histories.times
    for name, ids in (("user_ids", data.user_ids), ("item_ids", data.item_ids)):
        header[name] = ids.type
        if ids.type == "int64":
            arrays[name] = ids.raw
        else:
            arrays[f"{name}.bounds"], arrays[name] = ids.texts
    # torch warns of read-only arrays, which it cannot keep from being written to.
    tensors = {
        name: torch.from_numpy(np.require(array, requirements=["C", "W"]))
        for name, array in arrays.items()
    }
    header["digest"] = tensors_digest(tensors, header)
    replace_file(Path(path), lambda part: write_tensors(part, tensors, header))


def load_prepared(path: str | os.PathLike[str], *, verify: bool = False) -> Prepared:
    """Map a file into memory. All offsets and numbers are checked, and with `verify` the digest of the content, too.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, or not such a file; names it.
    """
    if not Path(path).is_file():
        os.stat(path)  # for the usual error if it is missing
        raise ValueError(f"{path} is no file, and nothing else can be mapped into memory")
    tensors, header = map_tensors(Path(path))
    digest = header.pop("digest", None)
    try:
        if header.get("format") != _FORMAT:
            raise ValueError(
                f"format {shown(header.get('format'))}, this version reads {_FORMAT!r}"
            )
        if verify and digest != tensors_digest(tensors, header):
            raise ValueError("its content does not match its digest")
        return _checked(tensors, header)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or holds no prepared data: {error}") from error


def _checked(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Prepared:
    user_ids, item_ids = (_read_ids(tensors, header, noun) for noun in ("user", "item"))
    users = np.arange(1, len(user_ids) + 1)
    offsets, items = (_array(tensors, name) for name in ("offsets", "items"))
    times = _array(tensors, "times") if "times" in tensors else None
    histories = Histories(users, offsets, items, times).checked()
    if not len(items) or items.max() != len(item_ids):
        raise ValueError(f"the largest item must be that of the last of {len(item_ids)} item ids")
    return Prepared(histories, user_ids, item_ids)


def _read_ids(tensors: Mapping[str, Tensor], header: Mapping[str, str], noun: str) -> IdMap:
    name = f"{noun}_ids"
    if header[name] == "int64":
        return IdMap.of_arrays("int64", _array(tensors, name), noun)
    texts = Texts(_array(tensors, f"{name}.bounds"), _array(tensors, name, torch.uint8))
    texts.check()
    if header[name] == "uuid":
        if len(texts.data) != 16 * (len(texts.offsets) - 1) or (np.diff(texts.offsets) != 16).any():
            raise ValueError(f"{name} must have 16 bytes each")
    elif header[name] == "str":
        texts.check_utf_8()
    else:
        raise ValueError(f"{name} are of type {shown(header[name])}")
    return IdMap.of_arrays(header[name], texts, noun)


def _array(
    tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype = torch.int64
) -> NDArray[Any]:
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.dim() != 1:
        raise ValueError(
            f"{name} must be of one dimension and {dtype}, got {tensor.dim()} and {tensor.dtype}"
        )
    array: NDArray[Any] = tensor.numpy()
    if not array.flags.aligned:  # what safetensors wrote is
        raise ValueError(f"{name} is not aligned in the file")
    return array
