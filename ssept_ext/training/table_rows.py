"""Training the item and user tables by the rows that a batch reads, so that a step does not pay for all the others.

A step gathers the rows that its batch reads (see `ssept_ext.data.packed.RowNumbers`) into small tables, and computes
the gradients of these. What they do to the whole tables depends on `TrainingOptions.table_optimizer`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ssept_ext import distributed, ops
from ssept_ext.data.packed import PackedBatch, Tables
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.tables import PARAMETERS
from ssept_ext.training.options import TrainingOptions

_LARGE_TABLES = 1_000_000
"""Elements of tables from which gathering rows is faster than adding up gradients of whole tables."""
_MANY_ROWS = 1_000_000
"""Rows from which a warning says what Adam of a whole table costs."""


class TableRows(ABC):
    """Gathers the rows that a batch reads, and takes their gradients to the tables.

    Attributes
    ----------
    tables
        The model's `lookup_tables`.
    state
        What the update of the tables keeps from step to step, apart from the state of Adam.
    of_parts
        Whether processes that train together look up the rows of their parts of a batch, not those of all of it.
    """

    def __init__(self, model: SequentialRecommender) -> None:
        self.tables = model.lookup_tables()
        self.state: dict[str, Tensor] = {}
        self.of_parts = False

    def sizes(self) -> list[int]:
        """Return the number of rows of items and, if there is a user table, of users."""
        names = (PARAMETERS["items"], PARAMETERS["users"])
        return [len(self.tables[name]) for name in names if name in self.tables]

    def gather(self, batch: PackedBatch) -> PackedBatch:
        """Give a batch with `numbers` its `tables`, which collect gradients instead of the model's."""
        found = {name: self.tables[name].detach()[ids] for name, ids in self._ids(batch)}
        items, *others = (found.get(name) for name in PARAMETERS.values())
        assert items is not None
        for rows in found.values():
            rows.requires_grad_()
        return replace(batch, tables=Tables(items, *others))

    @abstractmethod
    def collect(self, batch: PackedBatch) -> list[Tensor]:
        """Take gradients from the rows of a batch after the backward pass, before the optimizer's step.

        Returns
        -------
        list[Tensor]
            Those that have gradients besides the parameters of the optimizer.
        """

    @abstractmethod
    def finish(self, batch: PackedBatch) -> None:
        """Do what is to be done after the optimizer's step."""

    def save(self, folder: Path) -> dict[str, Tensor]:
        """Return what to save in a checkpoint in this folder, for `load`; all processes call this."""
        return self.state

    def load(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Go back to what `save` returned."""
        for name, x in state.items():
            self.state[name].copy_(x)

    def saved(self, folder: Path) -> None:
        """Remove what earlier checkpoints in this folder needed; process 0 calls this after each."""
        return

    def keep_best(self) -> None:
        """Keep tables that are not in the model's state dict, for `restore_best`."""
        return

    def restore_best(self) -> None:
        """Go back to the tables that were kept, if any."""
        return

    def _gathered(self, batch: PackedBatch) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Names of the tables, the ids of the rows, and the rows that were gathered."""
        assert batch.tables is not None
        found = (rows for rows in batch.tables if rows is not None)
        for (name, ids), rows in zip(self._ids(batch), found, strict=True):
            yield name, ids, rows

    def _ids(self, batch: PackedBatch) -> Iterator[tuple[str, Tensor]]:
        """Names of the tables, and the ids of the rows that a batch reads.

        Those of all its items, where one table has the vectors of inputs and another one those of targets.
        """
        numbers = batch.numbers
        assert numbers is not None
        for name in self.tables:
            yield name, numbers.user_ids if name == PARAMETERS["users"] else numbers.item_ids


class RowsOfWholeTables(TableRows):
    """For Adam of the whole tables: puts the gradients of rows into those of the tables.

    These are made once. Zeroing what a step has written is cheaper than gradients of whole tables for each of the ops
    that read them, and their sum; the update is the same.
    """

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__(model)
        self._gradients = {name: torch.zeros_like(table) for name, table in self.tables.items()}

    def collect(self, batch: PackedBatch) -> list[Tensor]:
        for name, ids, rows in self._gathered(batch):
            table = self.tables[name]
            if table.grad is None:  # but a subclass may read the table itself
                table.grad = self._gradients[name]
            if rows.grad is not None:
                table.grad.index_add_(0, ids, rows.grad)
        return []

    def finish(self, batch: PackedBatch) -> None:
        for name, ids, _ in self._gathered(batch):
            self.tables[name].grad = None
            self._gradients[name].index_fill_(0, ids, 0)


class RowOptimizer(TableRows):
    """Changes the rows that a batch reads, and only them, by "lazy_adam" or "rowwise_adagrad"."""

    def __init__(
        self, model: SequentialRecommender, options: TrainingOptions, optimizer: torch.optim.Adam
    ) -> None:
        """Prepare to update tables that the optimizer does not have, by its learning rate."""
        super().__init__(model)
        self._how = options.table_optimizer
        self._betas, self._l2_reg = options.adam_betas, model.l2_reg
        self._optimizer = optimizer
        for name, table in self.tables.items():
            if self._how == "lazy_adam":
                self.state[f"{name}.exp_avg"] = torch.zeros_like(table)
                self.state[f"{name}.exp_avg_sq"] = torch.zeros_like(table)
            else:
                self.state[f"{name}.sum_of_squares"] = table.new_zeros(table.shape[0])
        self.state["step"] = torch.zeros((), device=model.device)

    def collect(self, batch: PackedBatch) -> list[Tensor]:
        found = []
        for name, _, rows in self._gathered(batch):
            if self.tables[name].grad is not None:
                raise RuntimeError(
                    f"table_optimizer must be 'adam' for a model that reads {name} itself, got {self._how!r}"
                )
            if rows.grad is None:
                rows.grad = torch.zeros_like(rows)
            rows.grad = distributed.average(rows.grad)
            found.append(rows)
        return found

    def finish(self, batch: PackedBatch) -> None:
        self.state["step"] += 1
        for name, ids, rows in self._gathered(batch):
            assert rows.grad is not None
            group = self._optimizer.param_groups[0]  # another one after a checkpoint is loaded
            table, rate, eps = self.tables[name], group["lr"], group["eps"]
            if self._how == "lazy_adam":
                ops.lazy_adam(
                    table,
                    self.state[f"{name}.exp_avg"],
                    self.state[f"{name}.exp_avg_sq"],
                    ids,
                    rows.grad,
                    rate,
                    self.state["step"],
                    betas=self._betas,
                    eps=eps,
                    weight_decay=self._l2_reg,
                )
            else:
                ops.rowwise_adagrad(
                    table,
                    self.state[f"{name}.sum_of_squares"],
                    ids,
                    rows.grad,
                    rate,
                    eps=eps,
                    weight_decay=self._l2_reg,
                )


@runtime_checkable
class SuppliesRows(Protocol):
    """A model that has a `TableRows` of its own."""

    def table_rows(self, options: TrainingOptions, optimizer: torch.optim.Adam) -> TableRows:
        """Train its tables by the learning rate of this optimizer, which does not have them."""


def table_rows(
    model: SequentialRecommender, options: TrainingOptions, optimizer: torch.optim.Adam
) -> TableRows | None:
    """Choose how to train the tables of a model; None for Adam with gradients of whole tables."""
    if isinstance(model, SuppliesRows):
        return model.table_rows(options, optimizer)
    if options.table_optimizer != "adam":
        return RowOptimizer(model, options, optimizer)
    tables = model.lookup_tables().values()
    if sum(map(len, tables)) > _MANY_ROWS and options.loss != "softmax":
        warnings.warn(
            f"Adam moves all {sum(map(len, tables))} rows of the item and user tables in every step; "
            'table_optimizer="lazy_adam" moves those that a batch reads',
            stacklevel=5,
        )
    # Softmax over all items has a gradient for every row, and methods of a user's own may read whole tables.
    reads_rows = options.loss != "softmax" and model.is_capturable
    may_gather = model.device.type == "cpu" and distributed.size() == 1 and reads_rows
    # Of features, only those of a batch's items are projected.
    is_worth_it = model.content is not None or sum(t.numel() for t in tables) >= _LARGE_TABLES
    return RowsOfWholeTables(model) if may_gather and is_worth_it else None
