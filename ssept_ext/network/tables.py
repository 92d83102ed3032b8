"""The vectors of items, users and positions: the tables of a model, and what is looked up in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssept_ext.data.packed import PackedBatch
from ssept_ext.network import layers
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.content import ItemContent
from ssept_ext.ops.reference_checks import checked_ids

LookedUp: TypeAlias = tuple[Tensor, Tensor | None, PackedBatch]
"""Tables of items and, if there are any, users, and a batch whose ids are the rows of these."""


class VectorTables(nn.Module):
    """The part of a `SequentialRecommender` that has tables of vectors, with row 0 for the padding.

    Attributes
    ----------
    content
        The features of items and their projection; None for a model without `item_features`.
    """

    config: SASRECConfig
    user_embedding_layer: nn.Embedding | None
    content: ItemContent | None

    def __init__(self, config: SASRECConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding_layer = nn.Embedding(config.item_num + 1, config.item_dim, 0)
        self.user_embedding_layer = None
        if isinstance(config, SSEPTConfig):
            self.user_embedding_layer = nn.Embedding(config.user_num + 1, config.user_dim, 0)
        self.content = None
        if config.item_feature_dim:
            self.content = ItemContent(config.item_num, config.item_feature_dim, config.item_dim)
        self.positional_embedding_layer = nn.Embedding(config.seq_max_len, config.hidden_size)

    def user_vectors(self, users: Tensor, mean: Tensor | None = None) -> Tensor | None:
        """(B, Du) vectors by which users are scored: their own, or the mean of all for user 0, who is unknown.

        None without a user table. Users may be on the CPU, where an id outside the table raises an IndexError, and the
        mean is computed only if it is needed. On a GPU, such an id is unknown. `mean` is what `mean_user` returned, so
        as not to compute it for each batch.
        """
        if self.user_embedding_layer is None:
            return None
        ids = checked_ids("users", users, self.user_embedding_layer.num_embeddings)
        on_device = ids.to(self.device)
        vectors = cast("Tensor", self.user_embedding_layer(on_device))
        if ids.device.type == "cpu" and ids.all():  # a GPU would have to be waited for
            return vectors
        if mean is None:
            mean = cast("Tensor", self.mean_user())
        return torch.where(on_device[:, None] != 0, vectors, mean)

    def mean_user(self) -> Tensor | None:
        """(Du,) mean of all users' vectors, None without a user table.

        It is not cached, because torch does not notice all changes to parameters: not those made through `.data`.
        """
        layer = self.user_embedding_layer
        return None if layer is None else layers.mean_row(layer.weight.detach()[1:])

    def embedding_tables(self) -> list[nn.Parameter]:
        """Return the tables that `l2_reg` applies to: items, positions, users."""
        tables = [self.item_embedding_layer.weight, self.positional_embedding_layer.weight]
        if self.user_embedding_layer is not None:
            tables.append(self.user_embedding_layer.weight)
        return cast("list[nn.Parameter]", tables)

    def lookup_tables(self) -> dict[str, nn.Parameter]:
        """Return the tables of which a batch reads some rows, items and users, by their names in the state dict."""
        layers = {"item": self.item_embedding_layer, "user": self.user_embedding_layer}
        return {
            f"{name}_embedding_layer.weight": cast("nn.Parameter", layer.weight)
            for name, layer in layers.items()
            if layer is not None
        }

    def look_up(self, batch: PackedBatch) -> LookedUp:
        """Return tables of items and users, and a batch whose ids are their rows: see `PackedBatch.look_up`.

        The vectors of items include those of their features, which are computed for the rows of `batch.tables` only.
        """
        items, users, rows = batch.look_up(*self.lookup_tables().values())
        if self.content is None:
            return items, users, rows
        if batch.tables is not None:
            assert batch.numbers is not None
            return self.content(items, batch.numbers.item_ids), users, rows
        if batch.positives is None:
            table, numbers = self.item_rows(batch.items)
            return table, users, replace(rows, items=numbers)
        return self.item_table(), users, rows

    def item_table(self) -> Tensor:
        """(I + 1, Di) vectors by which items are read and scored; that of item 0, the padding, is zero.

        Each is the item's row of `item_embedding_layer` and, of a model with `item_features`, their projection.
        """
        table = self.item_embedding_layer.weight
        return table if self.content is None else self.content(table)

    def item_rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return a table with the vectors of these items, and which of its rows they are.

        That is the whole table and its ids, unless fewer vectors would have to be made from features.
        """
        table = self.item_embedding_layer.weight
        if self.content is None or items.numel() >= len(table):
            return self.item_table(), items
        ids = checked_ids("items", items.flatten(), len(table))
        numbers = torch.where(ids != 0, torch.arange(1, len(ids) + 1, device=ids.device), 0)
        ids = F.pad(ids, (1, 0))  # row 0 is the padding's in this table, too
        return self.content(table[ids], ids), numbers.view(items.shape)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.item_embedding_layer.weight.device
