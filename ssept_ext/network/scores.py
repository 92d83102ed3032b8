"""How hidden states score items."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssept_ext import ops
from ssept_ext._extension import Backend
from ssept_ext.network.config import SASRECConfig

LEAST_TEMPERATURE = 0.01
"""A learned temperature is not used below this, as in CLIP (Radford et al., ICML 2021)."""


class Scores(nn.Module):
    """Inner products of queries with the vectors of items, and with that of the user.

    A query is a hidden state, and the vector of an item its row in the table. With `cosine_temperature`, both are
    divided by their lengths, and queries by the temperature: cosines are scored, as in HSTU (Zhai et al., ICML 2024).
    The users' part stays as it is.

    Examples
    --------
    >>> config = SASRECConfig(item_num=9, embedding_dim=2, conv_dims=[2, 2], cosine_temperature=0.1)
    >>> scores = Scores(config)
    >>> scores.queries(torch.tensor([[3.0, 4.0]]))
    tensor([[6., 8.]])
    >>> scores.vectors(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    log_temperature: nn.Parameter | None

    def __init__(self, config: SASRECConfig, backend: Backend = "auto") -> None:
        super().__init__()
        self.item_dim = config.item_dim
        self.cosine_temperature = config.cosine_temperature
        self.backend = backend
        self.register_parameter("log_temperature", None)
        if config.learn_temperature:
            self.log_temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set a learned temperature to `cosine_temperature`."""
        if self.log_temperature is not None:
            assert self.cosine_temperature is not None
            nn.init.constant_(self.log_temperature, math.log(self.cosine_temperature))

    def queries(self, hidden: Tensor) -> Tensor:
        """(N, D) hidden states -> (N, D), float32 or wider for cosines; the first Di features score items."""
        if self.cosine_temperature is None:
            return hidden
        item_part, user_part = _widened(hidden).tensor_split([self.item_dim], 1)
        units = _unit(item_part)
        if self.log_temperature is None:
            return torch.cat([units / self.cosine_temperature, user_part], 1)
        least = math.log(LEAST_TEMPERATURE)
        return torch.cat([units * self.log_temperature.clamp_min(least).neg().exp(), user_part], 1)

    def vectors(self, rows: Tensor) -> Tensor:
        """(R, Di) rows of the item table -> (R, Di), float32 or wider for cosines; a row of zeros stays one."""
        if self.cosine_temperature is None:
            return rows
        return _unit(_widened(rows))

    def scale(self, rows: Tensor) -> Tensor | None:
        """(R,) factors by which inner products with `rows` become those with `vectors(rows)`; None for 1."""
        if self.cosine_temperature is None:
            return None
        wide = torch.promote_types(rows.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=wide)
        return norms.clamp_min(1e-12).reciprocal()

    def forward(
        self,
        queries: Tensor,
        vectors: Tensor,
        items: Tensor,
        user_table: Tensor | None,
        users: Tensor,
        cu_seqlens: Tensor,
    ) -> Tensor:
        """Score (N, K) items, numbers of vectors, for (N, D) queries; without a user table, without the users' part.

        The result has the wider of the dtypes of queries and vectors.
        """
        if user_table is None:
            queries = queries[:, : self.item_dim]
        wide = torch.promote_types(queries.dtype, vectors.dtype)
        return ops.sampled_logits(
            queries.to(wide),
            vectors.to(wide),
            None if user_table is None else user_table.to(wide),
            items,
            None if user_table is None else users,
            cu_seqlens,
            backend=self.backend,
        )


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(x: Tensor) -> Tensor:
    """Divide rows by their lengths, as torch's `normalize` does, which `torch.compile` would break the graph at."""
    return x * x.square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()
