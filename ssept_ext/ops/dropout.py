"""Dropout in plain PyTorch: a function of a seed and of an element's place, which the kernels compute as well."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32 with ten rounds (Salmon et al., SC 2011), on 32-bit words in int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The int64 products overflow, but their low and high words are still right.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def dropout_keep(rows: Tensor, num_columns: int, p: float, seed: Tensor, site: int) -> Tensor:
    """Return which elements dropout keeps, as a pure function of (seed, site, row, column).

    Element (row, column) is kept where word `column % 4` of Philox under key `seed` at counter
    (column // 4, row low, row high, site) is at least `p * 2**32`.

    Parameters
    ----------
    rows
        (...) int64 row numbers.
    seed
        (1,) int64 dropout seed.
    site
        Number of this dropout in the model, 0 <= site < 2**32.

    Returns
    -------
    Tensor
        (..., num_columns) bool.
    """
    row = rows.unsqueeze(-1)
    quads = torch.arange((num_columns + 3) // 4, device=rows.device)
    counter = (quads, row & _MASK32, (row >> 32) & _MASK32, torch.full_like(quads, site))
    key = (seed & _MASK32, (seed >> 32) & _MASK32)
    words = torch.stack(philox4x32_10(counter, key), -1)
    return words.flatten(-2)[..., :num_columns] >= int(p * 2**32)


def dropout(x: Tensor, p: float, seed: Tensor | None, site: int) -> Tensor:
    """Apply dropout to (N, C) rows by `dropout_keep`; the identity if p is 0."""
    check_dropout(p, seed, site)
    if p == 0 or x.numel() == 0:
        return x
    assert seed is not None
    keep = dropout_keep(torch.arange(x.shape[0], device=x.device), x.shape[1], p, seed, site)
    return torch.where(keep, x / (1 - p), 0)


def check_dropout(p: float, seed: Tensor | None, site: int) -> None:
    """Raise a ValueError if an argument of a dropout is out of range."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), got {p}")
    if not 0 <= site < 2**32:
        raise ValueError(f"site must be in 0..{2**32 - 1}, got {site}")
    if p > 0 and (seed is None or seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError("seed must be an int64 tensor of one element where dropout_p > 0")
