"""The encoder's layers, on packed tokens. Parameter names are those of recommenders' state dicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ssept_ext import ops
from ssept_ext._extension import Backend
from ssept_ext.network.config import SASRECConfig
from ssept_ext.ops.relative_bias import TIME_BUCKETS


class Tokens(NamedTuple):
    """Hidden states of packed tokens, with the layout of the batch."""

    x: Tensor
    """(N, D) hidden states."""
    positions: Tensor
    """(N,) int64 column in the left-padded layout."""
    cu_seqlens: Tensor
    """(B + 1,) int32 offsets of the sequences."""
    max_seqlen: int
    """Length of the longest sequence, or an upper bound of it."""
    times: Tensor | None = None
    """(N,) int64 time of each event, for a bias of time."""
    target_times: Tensor | None = None
    """(N,) int64 time of the event that each predicts; given with `times`."""
    normal: Tensor | None = None
    """(N, D) x after the layer norm that is next, if it has been computed with x."""

    def with_states(self, x: Tensor, normal: Tensor | None = None) -> Tokens:
        """Replace the hidden states."""
        return self._replace(x=x, normal=normal)

    def last(self) -> Tokens:
        """Keep only the last token of each sequence; an empty sequence gets a zero vector at position 0."""
        of_tokens, last = [*self[:2], *self[4:6]], self.cu_seqlens[1:] - 1
        one_each = torch.arange(last.shape[0] + 1, dtype=torch.int32, device=last.device)
        is_known = last.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (is_known and (last >= self.cu_seqlens[:-1]).all()):
            # Empty sequences take an extra row of zeros, added at the end.
            last = torch.where(self.cu_seqlens.diff() == 0, self.x.shape[0], last)
            of_tokens = [
                None if each is None else torch.cat([each, each.new_zeros(1, *each.shape[1:])])
                for each in of_tokens
            ]
        x, positions, *times = (
            None if each is None else each.index_select(0, last) for each in of_tokens
        )
        return Tokens(cast("Tensor", x), cast("Tensor", positions), one_each, 1, *times)


@dataclass(frozen=True)
class Dropout:
    """Probability and seed of all dropouts in a forward pass; each dropout has its own site number."""

    p: float
    seed: Tensor | None
    """(1,) int64; None if p is 0."""


NO_DROPOUT = Dropout(0.0, None)


class LayerNormalization(nn.Module):
    """Layer norm over the features, with biased variance and eps = 1e-8 inside the square root.

    In the architecture "recommenders" gamma and beta have shape (T, D), one value per position and feature; in the
    others they have shape (D,).
    """

    def __init__(self, config: SASRECConfig, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        shape = [config.hidden_size]
        if config.architecture == "recommenders":
            shape.insert(0, config.seq_max_len)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, tokens: Tokens) -> Tensor:
        """(N, D) -> (N, D)"""
        if tokens.normal is not None:
            return tokens.normal
        where = (tokens.positions, tokens.cu_seqlens)
        return ops.position_layer_norm(
            tokens.x, self.gamma, self.beta, *where, eps=1e-8, backend=self.backend
        )


class MultiHeadAttention(nn.Module):
    """Causal self-attention without an output projection (Kang & McAuley 2018, section 3.2).

    `position_bias` (H, T) and `time_bias` (H, 128), where the options ask for them, are added to its scores.
    """

    position_bias: nn.Parameter | None
    time_bias: nn.Parameter | None

    def __init__(self, config: SASRECConfig, backend: Backend) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.attention_num_heads
        self.backend = backend
        self.Q = nn.Linear(width, width)
        self.K = nn.Linear(width, width)
        self.V = nn.Linear(width, width)
        columns = {
            "position_bias": config.seq_max_len if config.position_bias else None,
            "time_bias": TIME_BUCKETS if config.time_bias else None,
        }
        for name, count in columns.items():
            table = None if count is None else nn.Parameter(torch.zeros(self.num_heads, count))
            self.register_parameter(name, table)

    def forward(
        self, queries: Tokens, keys: Tokens, drop: Dropout, site: int, residual: bool = True
    ) -> Tensor:
        """Attend from each query token to the tokens of its sequence up to itself.

        Returns (Nq, D), to which queries.x is added with `residual`.
        """
        by_time = self.time_bias is not None
        max_queries = queries.max_seqlen
        if queries.cu_seqlens is keys.cu_seqlens:
            # Of all tokens, also where no sequence has two: the kernel for one query rounds differently, and what a
            # history gets must not depend on how long the others of its batch are.
            max_queries = max(max_queries, 2)
        return ops.multi_head_attention(
            queries.x,
            keys.x,
            self.Q.weight,
            self.Q.bias,
            self.K.weight,
            self.K.bias,
            self.V.weight,
            self.V.bias,
            queries.cu_seqlens,
            keys.cu_seqlens,
            max_queries,
            keys.max_seqlen,
            self.num_heads,
            (queries.x.shape[1] // self.num_heads) ** -0.5,
            drop.p,
            drop.seed,
            site,
            residual,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            query_times=queries.target_times if by_time else None,
            key_times=keys.times if by_time else None,
            backend=self.backend,
        )


class PointWiseFeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear, dropout, residual. recommenders writes Linear as a convolution of width 1."""

    def __init__(self, width: int, inner: int, backend: Backend) -> None:
        super().__init__()
        self.conv_layer1 = nn.Linear(width, inner)
        self.conv_layer2 = nn.Linear(inner, width)
        self.backend = backend

    def forward(
        self, x: Tensor, drop: Dropout, site: int, residual: Tensor | None = None
    ) -> Tensor:
        """(N, D) -> (N, D), including the residual, by default x; uses the dropout sites `site` and `site + 1`."""
        settings = (drop.p, drop.seed, site, residual)
        return ops.feed_forward(x, *self._weights, *settings, backend=self.backend)

    def and_norm(
        self,
        x: Tensor,
        drop: Dropout,
        site: int,
        norm: LayerNormalization | None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` does, and this after `norm`, if that is given."""
        if norm is None:
            return self(x, drop, site, residual), None
        gamma, beta = norm.gamma, norm.beta
        settings = (drop.p, drop.seed, site, residual)
        return ops.feed_forward_and_norm(
            x, *self._weights, gamma, beta, *settings, eps=1e-8, backend=self.backend
        )

    @property
    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = self.conv_layer1, self.conv_layer2
        return first.weight, first.bias, second.weight, second.bias

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        for name in ("conv_layer1", "conv_layer2"):
            key = f"{prefix}{name}.weight"
            if key in state_dict and state_dict[key].shape[2:] == (1,):
                state_dict[key] = state_dict[key].squeeze(2)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SwigluFeedForward(nn.Module):
    """Linear, SwiGLU, dropout, Linear: no biases and no residual. The first layer makes what gates and what is gated.

    As in LiGR (Borisyuk et al. 2025) and, of the same names, in RecTools.
    """

    def __init__(self, width: int, inner: int, backend: Backend) -> None:
        super().__init__()
        self.conv_layer1 = nn.Linear(width, 2 * inner, bias=False)
        self.conv_layer2 = nn.Linear(inner, width, bias=False)
        self.backend = backend

    def forward(self, x: Tensor, drop: Dropout, site: int) -> Tensor:
        """(N, D) -> (N, D); uses the dropout site `site`."""
        u = self.conv_layer1(x)  # (N, 2 C)
        h = ops.swiglu(u, drop.p, drop.seed, site, backend=self.backend)  # (N, C)
        return cast("Tensor", self.conv_layer2(h))  # (N, D)
