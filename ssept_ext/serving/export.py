"""Models for other runtimes: `torch.export` and ONNX.

What is exported is made of plain PyTorch, `ssept_ext.ops.reference`: it runs where this package is not installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssept_ext.data.packed import pack_statically
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require

if TYPE_CHECKING:
    from torch.export import ExportedProgram


INPUTS = ("user", "input_seq", "candidate")


OUTPUT = "score"


MAX_ONNX_SIZE = 2**31
"""What protocol buffers can hold, in bytes."""


class Scorer(nn.Module):
    """`predict` on tensors, with no shape that depends on values."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        arguments = {field: getattr(model.config, field) for field in vars(model.config)}
        self.model = type(model)(**arguments, backend="reference")
        copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.model.load_state_dict(copies, assign=True)
        self.eval()

    def forward(self, user: Tensor, input_seq: Tensor, candidate: Tensor) -> Tensor:
        """As `SASREC.predict`, whose "user" (B,), "input_seq" (B, T) and "candidate" (B, C) these are; (B, C).

        T is `seq_max_len`. Ids outside the tables are not detected.
        """
        return self.model.score(pack_statically(user, input_seq), candidate)


def export_program(model: SequentialRecommender) -> ExportedProgram:
    """Export the scoring model with `torch.export`: for `torch.export.save`, AOTInductor, ExecuTorch and others.

    The program's inputs are `user` (B,), `input_seq` (B, seq_max_len), left-padded by 0, and `candidate`
    (B, C), all int64, for any B and C from 1; its result is what `predict` returns, (B, C). SASREC ignores
    `user`. Ids outside the tables count as padding. It runs on the device that the model is on, and keeps the
    parameters that the model has now.
    """
    scorer = Scorer(model)
    sizes = ((2,), (2, model.seq_max_len), (2, 3))
    example = tuple(torch.ones(size, dtype=torch.int64, device=model.device) for size in sizes)
    batch, candidates = torch.export.Dim("batch"), torch.export.Dim("candidates")
    dynamic = ({0: batch}, {0: batch}, {0: batch, 1: candidates})
    with torch.no_grad():
        return torch.export.export(scorer, example, dynamic_shapes=dynamic)


def export_onnx(model: SequentialRecommender, path: str | os.PathLike[str]) -> None:
    """Write the program of `export_program` as an ONNX file, inputs and output (`score`) under their names.

    The file is replaced in one step.

    Raises
    ------
    ImportError
        If onnx or onnxscript is missing: they come with `ssept_ext[export]`.
    ValueError
        If the parameters take 2 GiB or more, which is the most that an ONNX file can hold.
    OSError
        If the file cannot be written.
    """
    for module in ("onnx", "onnxscript"):
        require(module, "export")
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size >= MAX_ONNX_SIZE:
        raise ValueError(
            f"the model's parameters take {size} bytes: an ONNX file must be below {MAX_ONNX_SIZE}"
        )
    program = export_program(model).run_decompositions(
        {**torch.export.default_decompositions(), torch.ops.aten.searchsorted.Tensor: _searchsorted}
    )
    converted = torch.onnx.export(
        program, dynamo=True, input_names=INPUTS, output_names=[OUTPUT], verbose=False
    )
    assert converted is not None
    replace_file(Path(path), lambda part: converted.save(part, external_data=False))


def _searchsorted(
    sorted_sequence: Tensor,
    self: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """`torch.searchsorted(..., right=True)`, which ONNX lacks, as the reference ops call it: by comparing all."""
    assert right
    assert sorter is None
    return (sorted_sequence <= self[..., None]).sum(-1)
