"""Export of models for other runtimes, by `torch.export` and ONNX.

Exported models use the reference ops, which are plain PyTorch, so that they run without this package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssept_ext.data.packed import pack_statically
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ops.reference_checks import checked_ids
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require

if TYPE_CHECKING:
    from torch.export import ExportedProgram


INPUTS = ("user", "input_seq", "candidate")
"""Names of the exported model's inputs."""


OUTPUT = "score"
"""Name of the exported model's output."""


MAX_ONNX_SIZE = 2**31
"""Size limit of a protocol buffer, in bytes."""


class Scorer(nn.Module):
    """`predict` as a module with a copy of the parameters, without shapes that depend on values."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        with torch.device("meta"):  # draws no parameters
            self.model = type(model)(**vars(model.config), backend="reference")
        copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if (mean := model.mean_user()) is not None:
            copies["user_embedding_layer.weight"][0] = mean
        self.model.load_state_dict(copies, assign=True)
        self.eval()

    def forward(self, user: Tensor, input_seq: Tensor, candidate: Tensor) -> Tensor:
        """Score candidates (B, C) as the next item of users (B,) with sequences (B, T), where T is `seq_max_len`.

        Ids outside the tables are not detected.
        """
        table, vectors = self.model.user_embedding_layer, None
        if table is not None:
            vectors = table(checked_ids("user", user, table.num_embeddings))
        batch = pack_statically(user, input_seq)
        return self.model.score(batch, candidate, user_vectors=vectors)


def export_program(model: SequentialRecommender) -> ExportedProgram:
    """Export a model with `torch.export`, for `torch.export.save`, AOTInductor, ExecuTorch and others.

    The inputs of the program are `user` (B,), `input_seq` (B, seq_max_len), left-padded with 0, and `candidate`
    (B, C), all int64, for any B and C from 1. It returns (B, C) scores, as `predict` does. User 0 is unknown and gets
    the mean of all users' vectors; SASREC ignores `user`. Ids outside the tables count as 0. The program has a copy of
    the current parameters, and runs on the model's device.

    Raises
    ------
    ValueError
        If the model has `time_bias`.
    """
    if model.config.time_bias:
        raise ValueError("time_bias must be off for an export: the exported program takes no times")
    scorer = Scorer(model)
    sizes = ((2,), (2, model.seq_max_len), (2, 3))
    example = tuple(torch.ones(size, dtype=torch.int64, device=model.device) for size in sizes)
    batch, candidates = torch.export.Dim("batch"), torch.export.Dim("candidates")
    dynamic = ({0: batch}, {0: batch}, {0: batch, 1: candidates})
    with torch.no_grad():
        return torch.export.export(scorer, example, dynamic_shapes=dynamic)


def export_onnx(model: SequentialRecommender, path: str | os.PathLike[str]) -> None:
    """Write the program of `export_program` as an ONNX file, with the same names of inputs, and the output `score`.

    The file is replaced atomically.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed; they come with `ssept_ext[export]`.
    ValueError
        If the parameters take 2 GiB or more, the size limit of an ONNX file, or the model has `time_bias`.
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


def _searchsorted(sorted_sequence: Tensor, self: Tensor, *, right: bool = False) -> Tensor:
    """Decomposition of `torch.searchsorted(..., right=True)`, which ONNX lacks: compares all pairs."""
    assert right
    return (sorted_sequence <= self[..., None]).sum(-1)
