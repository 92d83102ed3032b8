"""Export of models for other runtimes, by `torch.export`, AOTInductor and ONNX.

Exported models use the reference ops, which are plain PyTorch, so that they run without this package.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ssept_ext.data.packed import pack_statically
from ssept_ext.network.folding import folded
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ops.reference_checks import checked_ids
from ssept_ext.utils.checks import check_bool
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.meta_device import without_parameters
from ssept_ext.utils.optional import require

if TYPE_CHECKING:
    from torch.export import ExportedProgram


INPUTS = ("user", "input_seq", "candidate")
"""Names of the exported model's inputs."""


OUTPUTS = ("score",)
"""Names of the exported model's outputs."""


INPUTS_OF_TOP_K = ("user", "input_seq", "k")
"""Names of the inputs of a model that was exported with `top_k`."""


OUTPUTS_OF_TOP_K = ("item", "score")
"""Names of the outputs of a model that was exported with `top_k`."""


MAX_ONNX_SIZE = 2**31
"""Size limit of a protocol buffer, in bytes."""


class Scorer(nn.Module):
    """`predict` as a module with a copy of the parameters, without shapes that depend on values."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        model = folded(model)
        with without_parameters():
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
        batch = pack_statically(user, input_seq)
        return self.model.score(batch, candidate, user_vectors=self._vectors(user))

    def _vectors(self, user: Tensor) -> Tensor | None:
        table = self.model.user_embedding_layer
        if table is None:
            return None
        return cast("Tensor", table(checked_ids("user", user, table.num_embeddings)))


class TopItems(Scorer):
    """The k best items for users and sequences, without those of the sequences, as a module; see `Scorer`."""

    def forward(self, user: Tensor, input_seq: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the `k` (B,) best items for users (B,) with sequences (B, T), best first, and their scores.

        Both are (B, K), where K is the largest of `k`, or all items if there are fewer. Row b has its `k[b]` items,
        followed by 0 with the score -inf, as where there are no more items.
        """
        batch, table = pack_statically(user, input_seq), self.model.output_table()
        queries, user_parts = self.model.encode_last(batch, self._vectors(user))  # (B, Di), (B,)
        scores = queries @ self.model.scores.vectors(table).to(queries.dtype).T  # (B, I + 1)
        seen = checked_ids("item", input_seq, len(table))
        hidden = torch.nn.functional.pad(seen, (1, 0))  # item 0, too
        most = cast("int", k.max().clamp(1, len(table) - 1).item())  # `int` would fix it
        torch._check(most >= 1)  # type: ignore[no-untyped-call]
        torch._check(most < len(table))  # type: ignore[no-untyped-call]
        best, items = scores.scatter(1, hidden, -math.inf).topk(most)
        best = best.masked_fill(torch.arange(most, device=k.device) >= k[:, None], -math.inf)
        return torch.where(best > -math.inf, items, 0), best + user_parts[:, None]


def export_program(model: SequentialRecommender, top_k: bool = False) -> ExportedProgram:
    """Export a model with `torch.export`, for `torch.export.save`, ExecuTorch and others.

    The inputs of the program are `user` (B,), `input_seq` (B, seq_max_len), left-padded with 0, and `candidate`
    (B, C), all int64, for any B and C from 1. It returns (B, C) scores, as `predict` does. User 0 is unknown and gets
    the mean of all users' vectors; SASREC ignores `user`. Ids outside the tables count as 0. The program has a copy of
    the current parameters, and runs on the model's device.

    Parameters
    ----------
    top_k
        Whether the program has the answer inside: instead of `candidate`, it takes `k` (B,) int64, ranks all items but
        those of `input_seq`, and returns the ids of the best, (B, max(k)) int64, and their scores. Row b has `k[b]` ids
        and, from there on or where there are no more items, 0 with the score -inf. No row is longer than `item_num`.
        Equal scores may be in any order.

    Raises
    ------
    ValueError
        If the model has `time_bias`, or `top_k` is not True or False.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> program = export_program(model, top_k=True).module()
    >>> items, scores = program(torch.tensor([0]), torch.tensor([[0, 0, 3, 5]]), torch.tensor([2]))
    >>> items.tolist() == model.recommend({1: [3, 5]}, k=2).items.tolist()
    True
    """
    if model.config.time_bias:
        raise ValueError("time_bias must be off for an export: the exported program takes no times")
    has_top_k = check_bool("top_k", top_k)
    batch, candidates = torch.export.Dim("batch"), torch.export.Dim("candidates")
    last: dict[int, Any] = {0: batch} if has_top_k else {0: batch, 1: candidates}
    sizes = [(2,), (2, model.seq_max_len), (2, 3)[: len(last)]]
    example = tuple(torch.ones(x, dtype=torch.int64, device=model.device) for x in sizes)
    scorer = TopItems(model) if has_top_k else Scorer(model)
    with torch.no_grad():
        return torch.export.export(scorer, example, dynamic_shapes=({0: batch}, {0: batch}, last))


def export_aoti(
    model: SequentialRecommender, path: str | os.PathLike[str], top_k: bool = False
) -> None:
    """Compile the program of `export_program` with AOTInductor, for this type of processor or GPU.

    `torch._inductor.aoti_load_package` loads the package in Python, and `torch::inductor::AOTIModelPackageLoader` in
    C++, which needs libtorch of the same version.

    Parameters
    ----------
    path
        The package, which ends in `.pt2`. The file is replaced atomically.
    top_k
        As `export_program` takes it.

    Raises
    ------
    ValueError
        If `path` does not end in `.pt2`, or as `export_program`.
    OSError
        If the file cannot be written, or there is no C++ compiler; the environment variable CXX names it.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if Path(path).suffix != ".pt2":
        raise ValueError(f"path must end in .pt2, got {path}")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise OSError(f"AOTInductor needs a C++ compiler: {error}") from error
    program = export_program(model, top_k)
    replace_file(Path(path), lambda part: aoti_compile_and_package(program, package_path=str(part)))


def export_onnx(
    model: SequentialRecommender, path: str | os.PathLike[str], top_k: bool = False
) -> None:
    """Write the program of `export_program` as an ONNX file, with the same inputs and the output `score`.

    With `top_k`, the outputs are `item` and `score`. The file of a SASREC has no input `user`. It is replaced
    atomically.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed; they come with `ssept_ext[export]`.
    ValueError
        If the parameters take 2 GiB or more, the size limit of an ONNX file, or as `export_program`.
    OSError
        If the file cannot be written.
    """
    for module in ("onnx", "onnxscript"):
        require(module, "export")
    size = sum(tensor.nbytes for tensor in folded(model).state_dict().values())
    if size >= MAX_ONNX_SIZE:
        raise ValueError(
            f"the model's parameters take {size} bytes: an ONNX file must be below {MAX_ONNX_SIZE}"
        )
    program = export_program(model, top_k).run_decompositions(
        {**torch.export.default_decompositions(), torch.ops.aten.searchsorted.Tensor: _searchsorted}
    )
    converted = torch.onnx.export(
        program,
        dynamo=True,
        input_names=INPUTS_OF_TOP_K if top_k else INPUTS,
        output_names=OUTPUTS_OF_TOP_K if top_k else OUTPUTS,
        verbose=False,
    )
    assert converted is not None
    replace_file(Path(path), lambda part: converted.save(part, external_data=False))


def _searchsorted(sorted_sequence: Tensor, self: Tensor, *, right: bool = False) -> Tensor:
    """Decomposition of `torch.searchsorted(..., right=True)`, which ONNX lacks: compares all pairs."""
    assert right
    return (sorted_sequence <= self[..., None]).sum(-1)
