"""Rows of packed tokens and of tables in plain PyTorch, for `reference.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext.ops.reference_checks import checked_ids


def sequence_of_token(cu_seqlens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(N,) sequence of each token, and (N,) bool: False for tail padding."""
    token = torch.arange(num_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    return sequence, token < cu_seqlens[-1]


def rows_at(x: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """`x[index]` where valid, zeros elsewhere, for any index there; x may be empty."""
    x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    return x[torch.where(valid, index, x.shape[0] - 1)]


def padded(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(N, ...) packed -> (B, max_seqlen, ...) with zeros after each sequence's last token."""
    index = cu_seqlens[:-1, None] + torch.arange(max_seqlen, device=x.device)
    return rows_at(x, index.long(), index < cu_seqlens[1:, None])


def packed(x: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """(B, max_seqlen, ...) -> (N, ...), zeros for tail padding: the inverse of `padded`."""
    sequence, real = sequence_of_token(cu_seqlens, num_tokens)
    start = torch.cat([cu_seqlens, cu_seqlens[-1:]])[sequence]
    offset = torch.arange(num_tokens, device=x.device) - start
    return rows_at(x.flatten(0, 1), sequence * x.shape[1] + offset, real)


def lookup(name: str, weight: Tensor, ids: Tensor, real: Tensor | None = None) -> Tensor:
    """Look up rows of a table; id 0, and ids where `real` is False, give zeros without gradient."""
    ids = checked_ids(name, ids, weight.shape[0], real, padding=True)
    return torch.where((ids != 0).unsqueeze(-1), embedding(ids, weight), 0)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Return `weight[ids]`; a table without rows, where all ids are padding, counts as one row of zeros."""
    return F.embedding(ids, weight if weight.shape[0] else weight.sum(0, keepdim=True))
