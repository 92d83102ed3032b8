"""Models for NVIDIA's Triton Inference Server, which answers with their ONNX files."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ssept_ext.data.id_map import save_id_maps
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.serving.export import export_onnx
from ssept_ext.utils.checks import shown
from ssept_ext.utils.files import TEMPORARY, locked, put_file
from ssept_ext.utils.optional import require

if TYPE_CHECKING:
    from onnx import ValueInfoProto


MAX_BATCH_SIZE = 256
"""Largest number of requests that Triton answers together."""


SCORES_AT_A_TIME = 1 << 24
"""Largest number of scores in memory together, 64 MiB in float32, which lowers the batch size of large catalogues."""


_TYPES = {"INT64": "TYPE_INT64", "FLOAT": "TYPE_FP32", "DOUBLE": "TYPE_FP64"}
"""Names of the types of tensors, in ONNX and in Triton."""


_CONFIG = """\
# A recommender that ssept_ext exported. Requests hold indices: item i is the i-th of "items" in ids.json, beside
# the model, and user u the u-th of "users". User 0 is unknown. input_seq has the last items of a user, oldest first,
# after zeros. The answer is k items, best first, that are not in input_seq, and their scores. Requests that are
# answered together get as many columns as the largest k: after k items, or where there are no more, they are 0.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
{tensors}
# Requests that arrive while others are being answered are answered together.
dynamic_batching {{ }}
"""


def export_triton(
    model: SequentialRecommender, repository: str | os.PathLike[str], name: str = "ssept"
) -> Path:
    """Write a model into a model repository of NVIDIA's Triton Inference Server, as its newest version.

    The repository has a folder `name` with `config.pbtxt`, the description of the inputs and outputs, and a folder for
    each version, with two files. `model.onnx` is what `export_onnx` writes with `top_k`. `ids.json` is there if the
    model has raw ids, and has them in the order of their indices, from 1. The server does not read it: whoever asks
    converts ids.

    A version appears in one step, so the server may watch the repository. An existing `config.pbtxt` is not changed.

    Returns
    -------
    Path
        The folder of the version.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed; they come with `ssept_ext[export]`.
    ValueError
        If `name` has anything but letters, digits, "_" and "-", an existing `config.pbtxt` describes other inputs or
        outputs, or as `export_onnx`.
    OSError
        If a file cannot be written.
    """
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise ValueError(f'name must consist of letters, digits, "_" and "-", got {shown(name)}')
    folder = Path(repository) / name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        locked(folder),
        tempfile.TemporaryDirectory(
            TEMPORARY, ".version.", folder, ignore_cleanup_errors=True
        ) as temporary,
    ):
        part = Path(temporary)
        part.chmod(0o755)  # the server may be another user's
        export_onnx(model, part / "model.onnx", top_k=True)
        if model.known is not None:
            save_id_maps(part / "ids.json", model.known.user_ids, model.known.item_ids)
        _put_config(folder / "config.pbtxt", name, part / "model.onnx", model.item_num)
        numbers = (int(x.name) for x in folder.iterdir() if re.fullmatch("[1-9][0-9]*", x.name))
        return part.rename(folder / str(1 + max(numbers, default=0)))


def _put_config(path: Path, name: str, onnx_file: Path, num_items: int) -> None:
    """Write a config.pbtxt unless there is one, which must have the inputs and outputs of the ONNX file."""
    graph = require("onnx", "export").load(onnx_file).graph
    tensors = f"{_described('input', graph.input)}\n{_described('output', graph.output)}"
    if not path.exists():
        size = max(1, min(MAX_BATCH_SIZE, SCORES_AT_A_TIME // (num_items + 1)))
        text = _CONFIG.format(name=name, max_batch_size=size, tensors=tensors)
        put_file(path, lambda part: part.write_text(text))
    elif tensors not in path.read_text():
        raise ValueError(
            f"{path} describes other inputs or outputs than the model has: choose another name, or remove it"
        )


def _described(kind: str, tensors: Iterable[ValueInfoProto]) -> str:
    """Describe inputs or outputs without the batch, the first dimension; Triton has no tensors of no dimension."""
    from onnx import TensorProto

    lines = []
    for tensor in tensors:
        of = tensor.type.tensor_type
        _, *dims = (dim.dim_value or -1 for dim in of.shape.dim)  # symbols have the value 0
        shape = f"dims: {dims}" if dims else "dims: [1] reshape: { shape: [] }"
        data_type = _TYPES[TensorProto.DataType.Name(of.elem_type)]
        lines.append(f'  {{ name: "{tensor.name}" data_type: {data_type} {shape} }}')
    return "{} [\n{}\n]".format(kind, ",\n".join(lines))
