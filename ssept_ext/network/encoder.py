"""The encoder: a stack of blocks of one architecture. Parameter names are those of recommenders' state dicts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssept_ext import ops
from ssept_ext._extension import Backend
from ssept_ext.network.config import Architecture, EmbeddingInit, SASRECConfig
from ssept_ext.network.layers import (
    Dropout,
    LayerNormalization,
    MultiHeadAttention,
    PointWiseFeedForward,
    SwigluFeedForward,
    Tokens,
)


class EncoderLayer(nn.Module):
    """One block: `n = LN(x)`, `a = attention(Q(n), K(x), V(x)) + n`, `y = FFN(m) + m`.

    In the architecture "recommenders" m is a; in "original" it is LN2(a).
    """

    num_dropouts: ClassVar[int] = 3

    def __init__(self, config: SASRECConfig, backend: Backend) -> None:
        super().__init__()
        width = config.hidden_size
        self.mha = MultiHeadAttention(config, backend)
        self.ffn = PointWiseFeedForward(width, config.conv_dims[0], backend)
        self.layer_normalization = LayerNormalization(config, backend)
        self.layer_normalization2 = None
        if config.architecture == "original":
            self.layer_normalization2 = LayerNormalization(config, backend)

    def forward(
        self,
        tokens: Tokens,
        drop: Dropout,
        site: int,
        last_only: bool,
        next_norm: LayerNormalization | None = None,
    ) -> Tokens:
        """Run the block for all tokens or, with `last_only`, only for the last token of each sequence.

        Uses the dropout sites `site` to `site + num_dropouts - 1`. Computes `next_norm` of the result, too.
        """
        queries = tokens.last() if last_only else tokens
        n = queries.with_states(self.layer_normalization(queries))  # (Nq, D)
        a = queries.with_states(self.mha(n, tokens, drop, site))  # (Nq, D)
        if self.layer_normalization2 is not None:
            a = queries.with_states(self.layer_normalization2(a))  # (Nq, D)
        return queries.with_states(*self.ffn.and_norm(a.x, drop, site + 1, next_norm))  # (Nq, D)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        # recommenders' blocks have two layer norms that its forward never uses.
        unused = (f"{prefix}layernorm1.", f"{prefix}layernorm2.")
        for key in [key for key in state_dict if key.startswith(unused)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


class PreNormLayer(nn.Module):
    """One block of the architecture "pre-ln": `a = x + attention(LN(x)) W + b`, `y = a + FFN(LN2(a))`.

    Queries, keys and values come from LN(x), and the residuals are not normalised, as in Xiong et al. 2020, "On Layer
    Normalization in the Transformer Architecture".
    """

    num_dropouts: ClassVar[int] = 4

    def __init__(self, config: SASRECConfig, backend: Backend) -> None:
        super().__init__()
        width = config.hidden_size
        self.backend = backend
        self.mha = MultiHeadAttention(config, backend)
        self.projection = nn.Linear(width, width)
        self.ffn: nn.Module = PointWiseFeedForward(width, config.conv_dims[0], backend)
        self.layer_normalization = LayerNormalization(config, backend)
        self.layer_normalization2 = LayerNormalization(config, backend)
        self.num_branches = 2 * config.num_blocks  # of the whole encoder

    def forward(
        self,
        tokens: Tokens,
        drop: Dropout,
        site: int,
        last_only: bool,
        next_norm: LayerNormalization | None = None,
    ) -> Tokens:
        """As `EncoderLayer.forward`."""
        x, h = self.attend(tokens, drop, site, last_only)  # (Nq, D) each
        a = self.add(x.x, h, None, drop, site + 1)  # (Nq, D)
        m = self.layer_normalization2(x.with_states(a))  # (Nq, D)
        assert isinstance(self.ffn, PointWiseFeedForward)
        return x.with_states(*self.ffn.and_norm(m, drop, site + 2, next_norm, a))  # (Nq, D)

    def attend(
        self, tokens: Tokens, drop: Dropout, site: int, last_only: bool
    ) -> tuple[Tokens, Tensor]:
        """Return the tokens that the block computes, and what attention makes of each, (Nq, D)."""
        keys = tokens.with_states(self.layer_normalization(tokens))  # (N, D)
        x, queries = (tokens.last(), keys.last()) if last_only else (tokens, keys)
        attended = self.mha(queries, keys, drop, site, residual=False)  # (Nq, D)
        return x, self.projection(attended)

    def add(self, x: Tensor, y: Tensor, gate: Tensor | None, drop: Dropout, site: int) -> Tensor:
        """Add a branch's output y, after dropout and gate, to its input x: (N, D) each."""
        return ops.gated_residual(x, y, gate, drop.p, drop.seed, site, backend=self.backend)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        if (
            strict
            and f"{prefix}mha.Q.weight" in state_dict
            and f"{prefix}projection.weight" not in state_dict
        ):
            raise RuntimeError(
                'these are the parameters of a model of the architecture "recommenders" or "original": '
                f"{type(self).__name__} has others, such as {prefix}projection.weight"
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)


class GatedLayer(PreNormLayer):
    """One block of the architecture "gated", LiGR: that of "pre-ln" with gates, and SwiGLU in the feed-forward layers.

    `a = x + sigmoid(gate1(x)) * (attention(LN(x)) W + b)`, `y = a + sigmoid(gate2(a)) * FFN(LN2(a))`: each gate reads
    what its branch is added to. From Borisyuk et al. 2025, "From Features to Transformers: Redefining Ranking for
    Scalable Impact", as RecTools implements it.
    """

    def __init__(self, config: SASRECConfig, backend: Backend) -> None:
        super().__init__(config, backend)
        width = config.hidden_size
        self.ffn = SwigluFeedForward(width, config.conv_dims[0], backend)
        self.gate1 = nn.Linear(width, width)
        self.gate2 = nn.Linear(width, width)

    def forward(
        self,
        tokens: Tokens,
        drop: Dropout,
        site: int,
        last_only: bool,
        next_norm: LayerNormalization | None = None,
    ) -> Tokens:
        """As `EncoderLayer.forward`, but for `next_norm`."""
        x, h = self.attend(tokens, drop, site, last_only)  # (Nq, D) each
        a = self.add(x.x, h, self.gate1(x.x), drop, site + 1)  # (Nq, D)
        m = self.layer_normalization2(x.with_states(a))  # (Nq, D)
        y = self.ffn(m, drop, site + 2)  # (Nq, D)
        return x.with_states(self.add(a, y, self.gate2(a), drop, site + 3))  # (Nq, D)


LAYERS: dict[Architecture, type[EncoderLayer | PreNormLayer]] = {
    "recommenders": EncoderLayer,
    "original": EncoderLayer,
    "pre-ln": PreNormLayer,
    "gated": GatedLayer,
}
"""The blocks of each architecture."""


class Encoder(nn.Module):
    """A stack of encoder blocks."""

    def __init__(self, config: SASRECConfig, backend: Backend) -> None:
        super().__init__()
        layer = LAYERS[config.architecture]
        self.num_dropouts = layer.num_dropouts
        self.needs_times = config.time_bias
        self.enc_layers = nn.ModuleList(layer(config, backend) for _ in range(config.num_blocks))

    def forward(
        self,
        tokens: Tokens,
        drop: Dropout,
        first_site: int,
        last_only: bool,
        next_norm: nn.Module | None = None,
    ) -> Tokens:
        """Run all blocks; with `last_only`, the last block computes only the last token of each sequence.

        `next_norm`, the layer norm of the result, is computed by its kernel where there is one.
        """
        if self.needs_times and (tokens.times is None or tokens.target_times is None):
            raise ValueError(
                "batch must have times and target_times, because the model has time_bias: those of interactions with "
                "times have them, and padded arrays have none"
            )
        last = len(self.enc_layers) - 1
        for i, layer in enumerate(self.enc_layers):
            norm: Any = next_norm if i == last else self.enc_layers[i + 1].layer_normalization
            of_fewer = last_only and i == last - 1 and isinstance(layer, EncoderLayer)
            if of_fewer or not isinstance(norm, LayerNormalization) or norm.gamma.dim() != 1:
                norm = None
            site = first_site + i * self.num_dropouts
            tokens = layer(tokens, drop, site, last_only and i == last, norm)
        return tokens


def initialise(network: nn.Module, embedding_init: EmbeddingInit) -> None:
    """Initialise tables as `embedding_init` says, with row 0 zero; weights Xavier-uniform, biases zero.

    In a `PreNormLayer`, the last weights of both branches are then divided by the square root of the number of all
    branches, whose sum would grow with it (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            if embedding_init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.uniform_(module.weight, -0.05, 0.05)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx] = 0
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in network.modules():
        if isinstance(block, PreNormLayer):
            for last in (block.projection, block.ffn.get_submodule("conv_layer2")):
                with torch.no_grad():
                    last.get_parameter("weight").div_(block.num_branches**0.5)
