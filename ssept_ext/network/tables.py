"""The vectors of items, users and positions: the tables of a model, and what is looked up in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssept_ext.data.packed import PackedBatch, Tables
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.content import ItemContent
from ssept_ext.ops.reference_checks import checked_ids

LookedUp: TypeAlias = tuple[Tables, PackedBatch]
"""Tables, and a batch whose ids are the rows of these."""

PARAMETERS = {
    "items": "item_embedding_layer.weight",
    "users": "user_embedding_layer.weight",
    "outputs": "output_embedding_layer.weight",
}
"""What the fields of `Tables` have rows of, by names of the state dict."""


@dataclass
class TablesToRead:
    """What `look_up` returned, for several readers: each leaves the tables that the next is to read."""

    tables: Tables
    rows: PackedBatch


class VectorTables(nn.Module):
    """The part of a `SequentialRecommender` that has tables of vectors, with row 0 for the padding.

    Attributes
    ----------
    output_embedding_layer
        Scores items instead of `item_embedding_layer`; None with `tie_item_embeddings`.
    content
        The features of items and their projection; None for a model without `item_features`.
    """

    config: SASRECConfig
    user_embedding_layer: nn.Embedding | None
    output_embedding_layer: nn.Embedding | None
    content: ItemContent | None

    def __init__(self, config: SASRECConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding_layer = nn.Embedding(config.item_num + 1, config.item_dim, 0)
        self.user_embedding_layer = None
        if isinstance(config, SSEPTConfig):
            self.user_embedding_layer = nn.Embedding(config.user_num + 1, config.user_dim, 0)
        self.output_embedding_layer = None
        if not config.tie_item_embeddings:
            self.output_embedding_layer = nn.Embedding(config.item_num + 1, config.item_dim, 0)
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
        return None if layer is None else mean_row(layer.weight.detach()[1:])

    def embedding_tables(self) -> list[nn.Parameter]:
        """Return the tables that `l2_reg` applies to: items, positions, users, and items as they are scored."""
        items, *others = self._whole_tables()
        tables = (items, self.positional_embedding_layer.weight, *others)
        return [cast("nn.Parameter", x) for x in tables if x is not None]

    def lookup_tables(self) -> dict[str, nn.Parameter]:
        """Return the tables of which a batch reads some rows, in the order of `PARAMETERS` and by these names."""
        named = zip(PARAMETERS.values(), self._whole_tables(), strict=True)
        return {name: cast("nn.Parameter", x) for name, x in named if x is not None}

    def _whole_tables(self) -> Tables:
        users, outputs = self.user_embedding_layer, self.output_embedding_layer
        return Tables(
            self.item_embedding_layer.weight,
            None if users is None else users.weight,
            None if outputs is None else outputs.weight,
        )

    def look_up(self, batch: PackedBatch) -> LookedUp:
        """Return tables, and a batch whose ids are their rows: see `PackedBatch.look_up`.

        The vectors of items include those of their features, which are computed for the rows of `batch.tables` only.
        """
        tables, rows = batch.look_up(self._whole_tables())
        if self.content is None:
            return tables, rows
        if batch.tables is not None:
            assert batch.numbers is not None
            items = self.content(tables.items, batch.numbers.item_ids)
        elif batch.positives is None:  # with features, items are read and scored alike
            items, numbers = self.item_rows(batch.items)
            rows = replace(rows, items=numbers)
        else:
            items = self.item_table()
        return tables._replace(items=items), rows

    def item_table(self) -> Tensor:
        """(I + 1, Di) vectors by which items are read; that of item 0, the padding, is zero.

        Each is the item's row of `item_embedding_layer` and, of a model with `item_features`, their projection.
        """
        table = self.item_embedding_layer.weight
        return table if self.content is None else self.content(table)

    def output_table(self) -> Tensor:
        """(I + 1, Di) vectors by which items are scored: `item_table`, unless they have a table of their own."""
        layer = self.output_embedding_layer
        return self.item_table() if layer is None else layer.weight

    def item_rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return a table with the vectors by which these items are scored, and which of its rows they are.

        A model with features has the same for reading them. That is the whole table and its ids, unless fewer vectors
        would have to be made from features.
        """
        table = self.item_embedding_layer.weight
        if self.content is None or items.numel() >= len(table):
            return self.output_table(), items
        ids = checked_ids("items", items.flatten(), len(table))
        numbers = torch.where(ids != 0, torch.arange(1, len(ids) + 1, device=ids.device), 0)
        ids = F.pad(ids, (1, 0))  # row 0 is the padding's in this table, too
        return self.content(table[ids], ids), numbers.view(items.shape)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.item_embedding_layer.weight.device


def mean_row(table: Tensor) -> Tensor:
    """(D,) mean of the rows of a table (R, D), summed in parts that fit in a processor's cache.

    On CPUs, `table.mean(0)` takes four times as long for a million rows.
    """
    wide = torch.promote_types(table.dtype, torch.float32)
    sums = torch.stack([part.sum(0, dtype=wide) for part in torch.split(table, 10_000)])
    return (sums.sum(0) / len(table)).to(table.dtype)
