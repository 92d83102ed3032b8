"""`ShardedSASREC` and `ShardedSSEPT`: models with tables that are spread over processes by TorchRec.

`docs/large_tables.md` shows how to train one. This needs `torchrec` and FBGEMM.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.types import ShardingEnv

from ssept_ext import distributed
from ssept_ext._extension import Backend
from ssept_ext.checkpoint.model import load_checkpoint, store_checkpoint
from ssept_ext.checkpoint.shards import tables_in_process_0
from ssept_ext.data.packed import PackedBatch, Tables, numbered
from ssept_ext.models import SASREC, SSEPT
from ssept_ext.network.config import SASRECConfig, SSEPTConfig, config_from_arguments
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import Shards
from ssept_ext.network.tables import LookedUp
from ssept_ext.training.large_tables import ShardedRows, ShardedTable, device_of_group
from ssept_ext.training.options import TrainingOptions

Self = TypeVar("Self", bound="ShardedSASREC")


class ShardedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding` whose rows are spread over processes. It has no parameters."""

    def __init__(self, table: ShardedTable) -> None:
        super().__init__()
        self.table = table
        self.num_embeddings, self.embedding_dim = table.num_rows, table.width

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids of any shape, without gradients; all processes must call this together."""
        distinct, index = numbered(ids)
        return self.table.look_up_without_gradient(distinct)[index]

    @property
    def weight(self) -> Tensor:
        """Raise an error, where a model with whole tables has one."""
        raise RuntimeError(
            f"the {self.table.noun} table is spread over {distributed.size()} processes, and this needs all of it: "
            f"save_pretrained it, and load it with {'SSEPT' if self.table.noun == 'user' else 'SASREC or SSEPT'}"
            f".from_pretrained"
        )


@dataclass(frozen=True)
class _Part:
    """Rows of a table from `start` on; `start` may be -1, for a row of zeros before the first."""

    rows: Tensor
    start: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows) - self.start, self.rows.shape[1]

    def __getitem__(self, rows: slice) -> Tensor:
        stop = min(rows.stop, self.shape[0])
        block = self.rows.new_zeros(stop - rows.start, self.rows.shape[1])
        missing = max(0, -(self.start + rows.start))
        block[missing:] = self.rows[self.start + rows.start + missing : self.start + stop]
        return block


class ShardedSASREC(SASREC):
    """A `SASREC` whose item table is spread over the processes of the default process group.

    All processes must call every method together, with the same arguments. Methods that need whole tables, such as
    `item_vectors`, raise a RuntimeError. Tables are trained by `table_optimizer="rowwise_adagrad"`.

    Attributes
    ----------
    whole_class
        The class for one machine.
    """

    whole_class: ClassVar[type[SASREC]] = SASREC

    def __init__(self, *, backend: Backend = "auto", **arguments: Any) -> None:
        """Make a model on this process's device, with tables that depend on the number of processes.

        Raises
        ------
        ValueError
            If an argument is out of range.
        RuntimeError
            If there is no process group.
        """
        config = config_from_arguments(self.config_class, type(self).__name__, arguments)
        device = device_of_group()
        with torch.device("cpu"):  # not on a default of the caller's
            self._make(config, backend)
        self.to(device)
        with distributed.raise_if_peer_lost():
            for x in self.state_dict().values():
                dist.broadcast(x, 0)

    def _make(self, config: SASRECConfig, backend: Backend) -> None:
        if config.item_feature_dim:
            raise ValueError(
                f"item_feature_dim must be 0 for tables that are spread over processes, got {config.item_feature_dim}"
            )
        if not config.tie_item_embeddings:
            raise ValueError(
                "tie_item_embeddings must be True for tables that are spread over processes, got False"
            )
        small: dict[str, Any] = {"item_num": 1}
        if isinstance(config, SSEPTConfig):
            small["user_num"] = 1
        SequentialRecommender.__init__(self, replace(config, **small), backend)
        self.config, self.sse = config, config.sse
        # A group of their own, so that their communication cannot interleave with DistributedDataParallel's.
        env = ShardingEnv.from_process_group(dist.new_group())
        seed = distributed.broadcast_from_rank0(
            lambda: int(torch.randint(2**62, (1,), device="cpu"))
        )
        self._tables = [_table("item", config.item_num, config.item_dim, config, seed, env)]
        self.item_embedding_layer = cast("nn.Embedding", ShardedEmbedding(self._tables[0]))
        if isinstance(config, SSEPTConfig):
            self._tables.append(
                _table(
                    "user", config.user_num, config.user_dim, config, seed + distributed.size(), env
                )
            )
            self.user_embedding_layer = cast("nn.Embedding", ShardedEmbedding(self._tables[1]))

    def table_rows(self, options: TrainingOptions, optimizer: torch.optim.Adam) -> ShardedRows:
        """Train the tables: see `ssept_ext.training.table_rows.SuppliesRows`."""
        return ShardedRows(self, options, optimizer, self._tables)

    def shards(self) -> Shards:
        """Return this process's rows: see `ssept_ext.network.sharded.Sharded`."""
        return {f"{table.noun}_embedding_layer.weight": table.rows() for table in self._tables}

    def item_part(self, num_items: int) -> tuple[int, _Part]:
        """Find the items that this process ranks: see `ssept_ext.network.sharded.Sharded`."""
        first, rows = self._tables[0].rows()
        rows = rows[: max(num_items + 1 - first, 0)]
        return max(first - 1, 0), _Part(self.scores.vectors(rows), start=0 if first == 0 else -1)

    def look_up(self, batch: PackedBatch) -> LookedUp:
        """Return the rows that a batch reads as tables, and the batch with its ids numbered by them.

        Raises
        ------
        RuntimeError
            If a gradient is wanted, which only the steps of `train_model` take to the tables.
        """
        if batch.tables is not None:
            return batch.look_up(batch.tables)
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sharded tables have gradients only in train_model: call other methods in torch.no_grad()"
            )
        of_items = {
            name: ids
            for name in ("items", "positives", "negatives")
            if (ids := getattr(batch, name)) is not None
        }
        item_ids, *numbers = numbered(*of_items.values())
        user_ids, users = numbered(batch.users)
        found = [
            table.look_up_without_gradient(ids)
            for table, ids in zip(self._tables, (item_ids, user_ids), strict=False)
        ]
        named: dict[str, Any] = dict(zip(of_items, numbers, strict=True))
        return Tables(*found), replace(batch, users=users, **named)

    def mean_user(self) -> Tensor | None:
        """(Du,) mean of all users' vectors, None without a user table."""
        if len(self._tables) == 1:
            return None
        first, rows = self._tables[1].rows()
        mine = rows[1:] if first == 0 else rows
        sums = distributed.total(mine.sum(0, dtype=torch.float64))
        return (sums / (self._tables[1].num_rows - 1)).float()

    def embedding_tables(self) -> list[nn.Parameter]:
        """Return the tables that every process has."""
        return [cast("nn.Parameter", self.positional_embedding_layer.weight)]

    def lookup_tables(self) -> dict[str, nn.Parameter]:
        """Return no tables: `ShardedRows` trains them."""
        return {}

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.positional_embedding_layer.weight.device

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, histories: bool = True, overwrite: bool = False
    ) -> None:
        """Write the folder of a `SASREC` or `SSEPT` with these tables: see `ssept_ext.checkpoint.save_checkpoint`.

        Process 0 writes, and holds no more than a block of another process's rows at a time.
        """
        with tables_in_process_0(self) as tables:
            if tables is not None:
                name = self.whole_class.__name__
                store_checkpoint(self, name, folder, histories, overwrite, tables)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the device is that of the process group
        cls: type[Self], folder: str | os.PathLike[str], *, backend: Backend = "auto"
    ) -> Self:
        """Load a model of one machine or of any number of processes; each process reads the rows that it has.

        Raises
        ------
        ValueError
            If `folder` holds a model of another class. `ShardedSASREC` also loads an SSEPT, which is a subclass.
        """
        classes: dict[str, type[ShardedSASREC]] = {
            "SASREC": ShardedSASREC,
            "SSEPT": ShardedSSEPT,
            cls.whole_class.__name__: cls,
        }
        model = load_checkpoint(classes, folder, backend, device_of_group()).float()
        if not isinstance(model, cls):
            raise ValueError(
                f"{folder} holds a {model.whole_class.__name__}, not a {cls.whole_class.__name__}"
            )
        return model

    def item_rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of these items as a table, and the items numbered by them."""
        distinct, numbers = numbered(items)
        return self._tables[0].look_up_without_gradient(distinct), numbers


class ShardedSSEPT(ShardedSASREC, SSEPT):
    """An `SSEPT` whose item and user tables are spread over processes: see `ShardedSASREC`."""

    whole_class = SSEPT


def _table(
    noun: str, count: int, width: int, config: SASRECConfig, seed: int, env: ShardingEnv
) -> ShardedTable:
    """Make a table that starts as `embedding_init` says."""
    limit = math.sqrt(6 / (count + 1 + width)) if config.embedding_init == "xavier" else 0.05
    return ShardedTable(noun, count, width, limit, seed + distributed.rank(), env)
