"""Files of tensors, in the format of safetensors, with errors that name the file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssept_ext.utils.files import DIGEST_LENGTH


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """Write tensors, and texts for the header; an OSError if the file cannot be written."""
    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, path, header)
    except SafetensorError as error:
        raise OSError(str(error)) from error


class RowBlocks(Protocol):
    """A tensor that is too large to be made at once."""

    shape: tuple[int, ...]
    """Its number of rows, and their width."""

    def blocks(self) -> Iterable[Tensor]:
        """Its rows, in their order."""


def write_blocks(path: Path, tensors: Mapping[str, Tensor | RowBlocks]) -> None:
    """As `write_tensors`, byte for byte, for tensors to be float32, of which some are made block by block."""
    header, end = {}, 0
    for name, x in sorted(tensors.items()):
        start, end = end, end + 4 * math.prod(x.shape)
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, x in sorted(tensors.items()):
            for block in [x] if isinstance(x, Tensor) else x.blocks():
                file.write(block.detach().float().cpu().contiguous().numpy().data)


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the tensors into memory, on the CPU, and read the header's texts; a ValueError if the file is damaged.

    The file must not be written to meanwhile, only replaced, as by `replace_file`. Changes to tensors stay in memory.
    """
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tensors_digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the first 64 bits of a SHA-256 of names, types, shapes and values on the CPU, in hexadecimal."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        sha.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:DIGEST_LENGTH]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors; a ValueError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
