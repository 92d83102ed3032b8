"""Files of tensors, in the format of safetensors, with errors that name the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.utils.files import DIGEST_LENGTH


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """Write tensors, and texts for the header; an OSError if the file cannot be written."""
    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, path, header)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors, on the CPU, and the texts of a file; a ValueError if it is damaged."""
    with _opened(path) as file:
        # Clone, because the tensors may be memory-mapped: a later change of the file must not change them.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Read the shapes alone, which takes neither time nor memory; a ValueError if the file is damaged."""
    with _opened(path) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def tensors_digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the first 64 bits of a SHA-256 of names, types, shapes and values on the CPU, in hexadecimal."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        sha.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:DIGEST_LENGTH]


def sizes_of(
    shapes: Mapping[str, Sequence[int]], config_class: type[SASRECConfig]
) -> dict[str, Any]:
    """Infer constructor arguments from the shapes of a model's parameters.

    Raises
    ------
    LookupError, TypeError, ValueError
        If they are not the shapes of such a model.
    """
    items, item_width = shapes["item_embedding_layer.weight"]
    seq_max_len, width = shapes["positional_embedding_layer.weight"]
    inner = shapes["encoder.enc_layers.0.ffn.conv_layer1.weight"][0]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.enc_layers.")}
    sizes = {
        "item_num": items - 1,
        "seq_max_len": seq_max_len,
        "num_blocks": len(blocks),
        "embedding_dim": item_width,
        "conv_dims": (inner, width),
    }
    if issubclass(config_class, SSEPTConfig):
        users, user_width = shapes["user_embedding_layer.weight"]
        sizes |= {"user_num": users - 1, "user_embedding_dim": user_width}
    return sizes


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
