"""Smaller copies of item vectors, which are ranked faster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssept_ext.network.scores import Scores

ItemDtype = Literal["float16", "int8"]
"""Types of a compressed table."""

SIDE_BY_SIDE = 64
"""Items of a group, as `ssept_ext.ops.top_k` reads them."""
_ROWS_AT_A_TIME = 4096 * SIDE_BY_SIDE
_MOST = {torch.float16: 65504.0, torch.int8: 127.0}


@dataclass(frozen=True, eq=False)
class CompressedTable:
    """The vectors of items in fewer bytes, 64 items side by side, for `ssept_ext.ops.top_k`."""

    vectors: Tensor
    """(groups, Di, 64) float16 or int8."""
    scale: Tensor
    """(64 groups,) float32 factors that make inner products with queries scores."""
    cosine_scale: Tensor
    """(64 groups,) float32 factors that make inner products with unit vectors cosines."""
    version: int
    """Of the parameters, when the table was made."""

    @classmethod
    def of(cls, rows: Tensor, dtype: torch.dtype, scores: Scores, version: int) -> CompressedTable:
        """Round (I + 1, Di) vectors; of int8, each has a scale of its own, so that its largest element is ±127.

        Raises
        ------
        ValueError
            If an element is not finite or, for float16, beyond ±65504.
        """
        num_groups, width = -(-len(rows) // SIDE_BY_SIDE), rows.shape[1]
        vectors = rows.new_zeros(num_groups, width, SIDE_BY_SIDE, dtype=dtype)
        scale = rows.new_ones(num_groups * SIDE_BY_SIDE, dtype=torch.float32)
        cosine_scale = torch.ones_like(scale)
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            block = rows[start : start + _ROWS_AT_A_TIME].float()
            steps = _steps(block, dtype, start)
            norms = torch.linalg.vector_norm(block, dim=1)
            of_scores = scores.scale(block)
            part = slice(start, start + len(block))
            scale[part] = steps if of_scores is None else steps * of_scores
            cosine_scale[part] = steps / norms.where(norms > 0, 1)
            numbers = block / steps[:, None]
            if dtype == torch.int8:
                numbers.round_()
            missing = -len(block) % SIDE_BY_SIDE
            numbers = torch.cat([numbers, numbers.new_zeros(missing, width)])
            groups = numbers.view(-1, SIDE_BY_SIDE, width).transpose(1, 2)
            first = start // SIDE_BY_SIDE
            vectors[first : first + len(groups)] = groups.to(dtype)
        return cls(vectors, scale, cosine_scale, version)


def _steps(block: Tensor, dtype: torch.dtype, start: int) -> Tensor:
    """(n,) by how much vectors are divided: the difference of two neighbouring numbers of int8."""
    largest: Tensor = torch.linalg.vector_norm(block, math.inf, dim=1)
    wrong = ~(largest <= (_MOST[dtype] if dtype == torch.float16 else torch.finfo().max))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"the vector of item {start + row} has an element of ±{largest[row].item():g}, which "
            f"{str(dtype).removeprefix('torch.')} cannot hold"
        )
    if dtype == torch.float16:
        return torch.ones_like(largest)
    steps = largest / _MOST[dtype]
    return steps.where(steps > 0, 1)
