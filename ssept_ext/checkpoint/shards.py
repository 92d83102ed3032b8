"""Reads tables whose rows are spread over processes, in process 0, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.network.sharded import Sharded
from ssept_ext.utils.tensor_files import RowBlocks

_ROWS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class _Request:
    """Rows that process 0 asks another one for."""

    name: str
    owner: int
    start: int
    stop: int


class _Table:
    """Has the rows of all processes; only process 0 makes one."""

    def __init__(self, name: str, mine: Tensor, counts: Sequence[int]) -> None:
        self._name, self._mine, self._counts = name, mine, counts
        self.shape: tuple[int, ...] = (sum(counts), mine.shape[1])

    def blocks(self) -> Iterator[Tensor]:
        for owner, count in enumerate(self._counts):
            for start in range(0, count, _ROWS_AT_A_TIME):
                stop = min(start + _ROWS_AT_A_TIME, count)
                yield self._fetch(_Request(self._name, owner, start, stop))

    def _fetch(self, wanted: _Request) -> Tensor:
        if wanted.owner == 0:
            return self._mine[wanted.start : wanted.stop]
        distributed.broadcast_from_rank0(lambda: wanted)
        rows = self._mine.new_empty(wanted.stop - wanted.start, self.shape[1])
        with distributed.raise_if_peer_lost():
            dist.recv(rows, src=wanted.owner)
        return rows


@contextmanager
def tables_in_process_0(model: Sharded) -> Iterator[dict[str, RowBlocks] | None]:
    """Make the tables readable in process 0, while the others send what it asks for.

    Yields
    ------
    dict or None
        In process 0, the tables by their names in the state dict of a model that has whole ones. In the others None,
        once process 0 has left the context. What it raises there is raised in all.
    """
    shards = model.shards()
    everywhere = distributed.gather({name: len(rows) for name, (_, rows) in shards.items()})
    if distributed.rank() == 0:
        try:
            yield {
                name: _Table(name, rows, [counts[name] for counts in everywhere])
                for name, (_, rows) in shards.items()
            }
        except Exception as error:
            _raise_everywhere(error)
        distributed.broadcast_from_rank0(lambda: None)
        return
    while (wanted := distributed.broadcast_from_rank0(lambda: _no_request())) is not None:
        if wanted.owner == distributed.rank():
            rows = shards[wanted.name][1][wanted.start : wanted.stop]
            with distributed.raise_if_peer_lost():
                dist.send(rows.contiguous(), dst=0)
    yield None


def _raise_everywhere(error: Exception) -> None:
    def fail() -> None:
        raise error

    distributed.broadcast_from_rank0(fail)


def _no_request() -> _Request | None:
    """What other processes than 0 would broadcast."""
    return None
