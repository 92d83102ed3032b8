"""Export of models for other runtimes, by `torch.export` and ONNX.

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
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ops.reference_checks import checked_ids
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require

if TYPE_CHECKING:
    from torch.export import ExportedProgram


INPUTS = ("user", "input_seq", "candidate")
"""Names of the exported model's inputs."""


OUTPUT = "score"
"""Name of the exported model's output."""


OUTPUTS_OF_BEST = ("item", "score")
"""Names of the outputs of a model exported with `top_k`, whose inputs are the first two of `INPUTS`."""


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
        batch = pack_statically(user, input_seq)
        return self.model.score(batch, candidate, user_vectors=self._vectors(user))

    def _vectors(self, user: Tensor) -> Tensor | None:
        table = self.model.user_embedding_layer
        if table is None:
            return None
        return cast("Tensor", table(checked_ids("user", user, table.num_embeddings)))


class BestItems(Scorer):
    """The k best items for users and sequences, without those of the sequences, as a module; see `Scorer`."""

    def __init__(self, model: SequentialRecommender, k: int) -> None:
        super().__init__(model)
        self.k = k

    def forward(self, user: Tensor, input_seq: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B,) users and (B, T) sequences -> (B, k) items, best first, 0 where there are no more, and their scores."""
        batch, table = pack_statically(user, input_seq), self.model.item_table()
        queries, user_parts = self.model.encode_last(batch, self._vectors(user))  # (B, Di), (B,)
        scores = queries @ self.model.scores.vectors(table).to(queries.dtype).T  # (B, I + 1)
        seen = checked_ids("item", input_seq, len(table))
        hidden = torch.nn.functional.pad(seen, (1, 0))  # item 0, too
        best, items = scores.scatter(1, hidden, -math.inf).topk(self.k)
        return torch.where(best > -math.inf, items, 0), best + user_parts[:, None]


def export_program(model: SequentialRecommender, top_k: int | None = None) -> ExportedProgram:
    """Export a model with `torch.export`, for `torch.export.save`, AOTInductor, ExecuTorch and others.

    The inputs of the program are `user` (B,), `input_seq` (B, seq_max_len), left-padded with 0, and `candidate`
    (B, C), all int64, for any B and C from 1. It returns (B, C) scores, as `predict` does. User 0 is unknown and gets
    the mean of all users' vectors; SASREC ignores `user`. Ids outside the tables count as 0. The program has a copy of
    the current parameters, and runs on the model's device.

    Parameters
    ----------
    top_k
        If given, the program has the answer inside: without `candidate`, it ranks all items but those of `input_seq`,
        and returns the ids (B, top_k) of the best, 0 where there are no more, and their scores, -inf there. Equal
        scores may be in any order.

    Raises
    ------
    ValueError
        If the model has `time_bias`, or `top_k` is not within 1..item_num.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> program = export_program(model, top_k=2).module()
    >>> items, scores = program(torch.tensor([0]), torch.tensor([[0, 0, 3, 5]]))
    >>> items.tolist() == model.recommend({1: [3, 5]}, k=2).items.tolist()
    True
    """
    if model.config.time_bias:
        raise ValueError("time_bias must be off for an export: the exported program takes no times")
    batch, candidates = torch.export.Dim("batch"), torch.export.Dim("candidates")
    sizes: list[tuple[int, ...]] = [(2,), (2, model.seq_max_len)]
    dynamic: list[dict[int, Any]] = [{0: batch}, {0: batch}]
    scorer: Scorer
    if top_k is None:
        scorer = Scorer(model)
        sizes.append((2, 3))
        dynamic.append({0: batch, 1: candidates})
    else:
        scorer = BestItems(model, check_at_least("top_k", top_k, 1, model.item_num))
    example = tuple(torch.ones(size, dtype=torch.int64, device=model.device) for size in sizes)
    with torch.no_grad():
        return torch.export.export(scorer, example, dynamic_shapes=tuple(dynamic))


def export_onnx(
    model: SequentialRecommender, path: str | os.PathLike[str], top_k: int | None = None
) -> None:
    """Write the program of `export_program` as an ONNX file, with the same inputs, and the output `score`.

    With `top_k`, the outputs are `item` and `score`.

    The file is replaced atomically.

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
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size >= MAX_ONNX_SIZE:
        raise ValueError(
            f"the model's parameters take {size} bytes: an ONNX file must be below {MAX_ONNX_SIZE}"
        )
    program = export_program(model, top_k).run_decompositions(
        {**torch.export.default_decompositions(), torch.ops.aten.searchsorted.Tensor: _searchsorted}
    )
    names = (INPUTS, [OUTPUT]) if top_k is None else (INPUTS[:2], OUTPUTS_OF_BEST)
    converted = torch.onnx.export(
        program, dynamo=True, input_names=names[0], output_names=names[1], verbose=False
    )
    assert converted is not None
    replace_file(Path(path), lambda part: converted.save(part, external_data=False))


def _searchsorted(sorted_sequence: Tensor, self: Tensor, *, right: bool = False) -> Tensor:
    """Decomposition of `torch.searchsorted(..., right=True)`, which ONNX lacks: compares all pairs."""
    assert right
    return (sorted_sequence <= self[..., None]).sum(-1)
