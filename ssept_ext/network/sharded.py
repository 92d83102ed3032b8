"""What the rest of the package asks of a model whose item and user tables are spread over processes."""

from __future__ import annotations

from functools import cache
from typing import Protocol, TypeAlias, TypeGuard, runtime_checkable

from torch import Tensor

Shards: TypeAlias = dict[str, tuple[int, Tensor]]
"""A process's rows of tables, by the tables' names in the state dict of a model that has whole ones: the id of the
first row, and the rows (n, width)."""


class Rows(Protocol):
    """Consecutive rows of a table, as of a tensor, that may be made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and their width."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@runtime_checkable
class Sharded(Protocol):
    """A model of which each process has some rows of the tables: all processes must call every method together.

    `ssept_ext.large_tables` has such models.
    """

    def item_part(self, num_items: int) -> tuple[int, Rows]:
        """Find the vectors that this process ranks, of those of the items 1 to `num_items`.

        Returns
        -------
        tuple[int, Rows]
            The number of items before them; and the vectors, (n + 1, Di), after a row that is not used.
        """

    def shards(self) -> Shards:
        """Return this process's rows, which may be changed."""


def is_sharded(model: object) -> TypeGuard[Sharded]:
    """Whether each process has some rows of the tables."""
    return _is_sharded(type(model))  # type: ignore[arg-type]  # a class is hashable


@cache  # Python compares all methods, which would take a tenth of the time of an answer
def _is_sharded(kind: type) -> bool:
    return issubclass(kind, Sharded)
