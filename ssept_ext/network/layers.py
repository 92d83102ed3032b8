"""The encoder's layers, on packed tokens. Parameter names are those of recommenders' state dicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssept_ext import ops
from ssept_ext._extension import Backend


@dataclass(frozen=True)
class Tokens:
    """Hidden states of packed tokens, and where they belong."""

    x: Tensor
    """(N, D)"""
    positions: Tensor
    """(N,) int64 column in the left-padded layout."""
    cu_seqlens: Tensor
    """(B + 1,) int32"""
    max_seqlen: int

    def last(self) -> Tokens:
        """One token a sequence, the last; for an empty sequence a zero vector at position 0."""
        num_sequences = self.cu_seqlens.shape[0] - 1
        last = self.cu_seqlens[1:].long() - 1
        empty = self.cu_seqlens.diff() == 0
        # An extra row of zeros at the end serves the empty ones.
        index = torch.where(empty, self.x.shape[0], last)
        x = torch.cat([self.x, self.x.new_zeros(1, self.x.shape[1])])
        positions = torch.cat([self.positions, self.positions.new_zeros(1)])
        one_each = torch.arange(num_sequences + 1, dtype=torch.int32, device=x.device)
        return Tokens(x[index], positions[index], one_each, 1)


@dataclass(frozen=True)
class Dropout:
    """What one forward pass drops. Each dropout in it adds a site number of its own."""

    p: float
    seed: Tensor | None
    """(1,) int64, None where p is 0."""

    @staticmethod
    def none() -> Dropout:
        """Drop nothing."""
        return Dropout(0.0, None)


class LayerNormalization(nn.Module):
    """Layer norm over features with biased variance and eps 1e-8 inside the root.

    gamma and beta have one value for each position and feature, (T, D), as recommenders' have, or, with
    `seq_max_len=None`, one for each feature, (D,), as the authors' code has.
    """

    def __init__(self, seq_max_len: int | None, width: int, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        shape = (width,) if seq_max_len is None else (seq_max_len, width)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, tokens: Tokens) -> Tensor:
        """(N, D) -> (N, D)"""
        if self.gamma.dim() == 1:
            return F.layer_norm(tokens.x, tokens.x.shape[1:], self.gamma, self.beta, eps=1e-8)
        where = (tokens.positions, tokens.cu_seqlens)
        return ops.position_layer_norm(
            tokens.x, self.gamma, self.beta, *where, eps=1e-8, backend=self.backend
        )


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`, without the copy of the bias over all rows that PyTorch begins with on a CPU.

    In half types it begins with none, and a sum with a bias in float32 would take many passes.
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return cast("Tensor", layer(x))
    return F.linear(x, layer.weight).add_(layer.bias)


class MultiHeadAttention(nn.Module):
    """Causal self-attention without an output projection (Kang & McAuley 2018, section 3.2)."""

    def __init__(self, width: int, num_heads: int, backend: Backend) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.Q = nn.Linear(width, width)
        self.K = nn.Linear(width, width)
        self.V = nn.Linear(width, width)

    def forward(self, queries: Tokens, keys: Tokens, drop: Dropout, site: int) -> Tensor:
        """(Nq, D): what each query token takes from the tokens of its sequence up to itself."""
        head_size = queries.x.shape[1] // self.num_heads
        out, _ = ops.causal_attention(
            _linear(self.Q, queries.x).view(-1, self.num_heads, head_size),
            _linear(self.K, keys.x).view(-1, self.num_heads, head_size),
            _linear(self.V, keys.x).view(-1, self.num_heads, head_size),
            queries.cu_seqlens,
            keys.cu_seqlens,
            queries.max_seqlen,
            keys.max_seqlen,
            head_size**-0.5,
            drop.p,
            drop.seed,
            site,
            backend=self.backend,
        )
        return out.reshape(queries.x.shape)


class PointWiseFeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear, dropout, residual; recommenders' linear layers are convolutions of width 1."""

    def __init__(self, width: int, inner: int, backend: Backend) -> None:
        super().__init__()
        self.conv_layer1 = nn.Linear(width, inner)
        self.conv_layer2 = nn.Linear(inner, width)
        self.backend = backend

    def forward(self, x: Tensor, drop: Dropout, site: int) -> Tensor:
        """(N, D) -> (N, D), with x added; uses the sites `site` and `site + 1`."""
        first, second = self.conv_layer1, self.conv_layer2
        inner = ops.bias_dropout(
            F.linear(x, first.weight),
            first.bias,
            relu=True,
            dropout_p=drop.p,
            seed=drop.seed,
            site=site,
            backend=self.backend,
        )
        return ops.bias_dropout(
            F.linear(inner, second.weight),
            second.bias,
            residual=x,
            dropout_p=drop.p,
            seed=drop.seed,
            site=site + 1,
            backend=self.backend,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        for name in ("conv_layer1", "conv_layer2"):
            key = f"{prefix}{name}.weight"
            if key in state_dict and state_dict[key].shape[2:] == (1,):
                state_dict[key] = state_dict[key].squeeze(2)
        super()._load_from_state_dict(state_dict, prefix, *args)
