"""Item and user tables that are too large for one machine, with rows spread over the processes by TorchRec.

This needs `torchrec` and FBGEMM, see `docs/large_tables.md`, and a process group, see `ssept_ext.distributed`. Each
process looks up the rows that its part of a batch reads. They form small tables, which the model uses like its own.
Their gradients are sent to the processes that have the rows, which update them at once.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv

from ssept_ext import distributed
from ssept_ext.data.packed import PackedBatch, Tables
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.table_rows import TableRows

_MULTIPLE = 4
"""FBGEMM needs rows of a multiple of this many features."""

_EPS = 1e-7
"""As that of `make_optimizer`."""


class ShardedTable:
    """A table (count + 1, width) of vectors, of which each process has as many consecutive rows; row 0 is zero.

    All processes of the default group must call its methods together. The table is float32.
    """

    def __init__(
        self, noun: str, count: int, width: int, limit: float, seed: int, env: ShardingEnv
    ) -> None:
        """Make a table, uniform in ±`limit`, on `device_of_group`.

        Raises
        ------
        ValueError
            If a process would have no row.
        """
        self.noun, self.width, self.num_rows = noun, width, count + 1
        device, size = device_of_group(), distributed.size()
        if (size - 1) * -(-self.num_rows // size) >= self.num_rows:  # FBGEMM fails without a row
            raise ValueError(
                f"{noun}_num must leave rows for each of {size} processes, got {count}: start fewer processes"
            )
        padded = -(-width // _MULTIPLE) * _MULTIPLE
        # FBGEMM takes means of squares over features that are only padding, too.
        self._scale = math.sqrt(width / padded)
        sharder = EmbeddingCollectionSharder(
            fused_params={
                "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
                "learning_rate": 0.0,
                "eps": _EPS * self._scale,
            }
        )
        table = EmbeddingConfig(
            name=noun, embedding_dim=padded, num_embeddings=self.num_rows, feature_names=[noun]
        )
        whole = EmbeddingCollection(tables=[table], device=torch.device("meta"))
        plan = construct_module_sharding_plan(
            whole,
            {noun: row_wise(compute_kernel="fused")},
            sharder,
            device_type=device.type,
        )
        self._module = sharder.shard(whole, plan, env, device)
        self._best = torch.empty(0)
        first, rows = self.rows()
        nn.init.uniform_(rows, -limit, limit, torch.Generator(device).manual_seed(seed))
        if first == 0:
            rows[:1].zero_()

    def rows(self) -> tuple[int, Tensor]:
        """Return the id of this process's first row, and its rows (n, width), which may be changed."""
        (shard,) = self._weight().local_shards()
        return shard.metadata.shard_offsets[0], shard.tensor.detach()[:, : self.width]

    def look_up(self, ids: Tensor) -> Tensor:
        """Look up distinct ids of which the first is 0: a row of zeros, then their rows.

        The backward pass sends the gradients to the processes that have the rows. These add them up, divide by the
        number of processes and update the rows.
        """
        wanted = KeyedJaggedTensor(
            keys=[self.noun], values=ids[1:], lengths=ids.new_tensor([len(ids) - 1])
        )
        with distributed.raise_if_peer_lost():
            found = self._module(wanted).wait()[self.noun].values()
        return torch.cat([found.new_zeros(1, self.width), found[:, : self.width]])

    def look_up_without_gradient(self, ids: Tensor) -> Tensor:
        """As `look_up`, also in inference mode, in which FBGEMM fails."""
        with torch.inference_mode(False), torch.no_grad():
            return self.look_up(ids.clone())

    def set_learning_rate(self, learning_rate: float) -> None:
        """Update rows with this learning rate from now on."""
        optimizer = self._module.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * self._scale
        optimizer.step()  # hands it on; rows are updated by backward passes

    def keep_best(self) -> None:
        """Keep a copy of the rows for `restore_best`."""
        (shard,) = self._weight().local_shards()
        self._best = shard.tensor.detach().clone()

    def restore_best(self) -> None:
        """Go back to the rows that were kept."""
        (shard,) = self._weight().local_shards()
        shard.tensor.detach().copy_(self._best)

    def state(self, best: bool) -> dict[str, ShardedTensor]:
        """Return the rows, the optimizer's state and, with `best`, the rows that are kept, to save or to load."""
        weight = self._weight()
        found = {f"{self.noun}.weight": weight}
        for states in self._module.fused_optimizer.state_dict()["state"].values():
            found |= states
        if best:
            (shard,) = weight.local_shards()
            found[f"{self.noun}.best"] = ShardedTensor._init_from_local_shards_and_global_metadata(
                [Shard(self._best, shard.metadata)],
                weight.metadata(),
                process_group=weight._process_group,
            )
        return found

    def _weight(self) -> ShardedTensor:
        weight: ShardedTensor = self._module.state_dict()[f"embeddings.{self.noun}.weight"]
        return weight


class ShardedRows(TableRows):
    """Trains sharded tables by the rows that each process's part of a batch reads, by row-wise Adagrad.

    A step is that of `RowOptimizer` on whole tables.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        options: TrainingOptions,
        optimizer: torch.optim.Adam,
        tables: list[ShardedTable],
    ) -> None:
        """Prepare to update tables, items and then perhaps users, by the learning rate of the optimizer."""
        if options.table_optimizer != "rowwise_adagrad":
            raise ValueError(
                f'table_optimizer must be "rowwise_adagrad" for sharded tables, got "{options.table_optimizer}"'
            )
        kind = device_of_group().type
        if model.device.type != kind:
            raise ValueError(
                f"device must be {kind}, from which the process group communicates and where the tables are, "
                f"got {model.device.type}"
            )
        if model.l2_reg:
            raise ValueError(
                f"l2_reg must be 0 for sharded tables, of which a step changes only the rows that it reads, "
                f"got {model.l2_reg}"
            )
        super().__init__(model)
        # The norm of all gradients needs the sums over the processes: each then looks up the rows of the whole batch.
        self.of_parts = options.max_grad_norm is None
        self._optimizer, self._sharded = optimizer, tables
        self._looked_up: list[Tensor] = []
        self._number, self._has_best = 0, False

    def gather(self, batch: PackedBatch) -> PackedBatch:
        numbers = batch.numbers
        assert numbers is not None
        self._looked_up = []
        for table, ids in zip(self._sharded, (numbers.item_ids, numbers.user_ids), strict=False):
            table.set_learning_rate(float(self._optimizer.param_groups[0]["lr"]))
            self._looked_up.append(table.look_up(ids))
        rows = [found.detach().requires_grad_() for found in self._looked_up]
        return replace(batch, tables=Tables(*rows))

    def collect(self, batch: PackedBatch) -> list[Tensor]:
        found = [rows for rows in batch.tables or () if rows is not None]
        for rows in found:
            if rows.grad is None:
                rows.grad = torch.zeros_like(rows)
            if not self.of_parts:
                rows.grad = distributed.average(rows.grad)
        return found

    def finish(self, batch: PackedBatch) -> None:
        for found, rows in zip(self._looked_up, batch.tables or (), strict=False):
            assert rows is not None
            found.backward(rows.grad)  # type: ignore[no-untyped-call]

    def keep_best(self) -> None:
        for table in self._sharded:
            table.keep_best()
        self._has_best = True

    def restore_best(self) -> None:
        if self._has_best:
            for table in self._sharded:
                table.restore_best()

    def save(self, folder: Path) -> dict[str, Tensor]:
        """Save the tables in a folder of their own, which `saved` makes the only one."""
        path = folder / f"tables-{self._number + 1}"
        distributed.broadcast_from_rank0(lambda: shutil.rmtree(path, ignore_errors=True))
        with _checkpointing(f"cannot write {path}", OSError):
            save(self._state(), checkpoint_id=path)
        self._number += 1
        return {
            "number": torch.tensor(self._number),
            "has_best": torch.tensor(self._has_best),
        }

    def saved(self, folder: Path) -> None:
        for path in folder.iterdir():
            if re.fullmatch("tables-[0-9]+", path.name) and path.name != f"tables-{self._number}":
                shutil.rmtree(path, ignore_errors=True)

    def load(self, folder: Path, state: dict[str, Tensor]) -> None:
        self._number = int(state["number"])
        if state["has_best"]:
            self.keep_best()
        path = folder / f"tables-{self._number}"
        with _checkpointing(f"{path} is missing or damaged", ValueError):
            load(self._state(), checkpoint_id=path)

    def _state(self) -> dict[str, ShardedTensor]:
        state: dict[str, ShardedTensor] = {}
        for table in self._sharded:
            state |= table.state(self._has_best)
        return state


def device_of_group() -> torch.device:
    """Return the device that the default process group communicates from."""
    if not dist.is_initialized():
        raise RuntimeError(
            "sharded tables need a process group: start the processes with torchrun, and use "
            "ssept_ext.distributed.process_group"
        )
    return torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")


@contextmanager
def _checkpointing(what: str, kind: type[Exception]) -> Iterator[None]:
    """Turn the errors of torch.distributed.checkpoint, which are no Exceptions, into ones that say what failed."""
    with distributed.raise_if_peer_lost():
        try:
            yield
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if "gloo" in str(cause) or isinstance(cause, dist.DistError):
                raise cause from error
            raise kind(f"{what}: {cause}") from error
