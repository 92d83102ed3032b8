"""Several processes that train one model: each takes a part of every batch, and they agree on all else.

`torchrun --nproc-per-node=N -m ssept_ext train ...` starts them. In a script of one's own,
`torch.distributed.init_process_group` before `train_model` does. All processes must get the same
data, sampler (with a seed) and arguments, and see the same checkpoint folder. Without a process
group, all functions here are those of one process alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssept_ext.graphs import Loss
from ssept_ext.packing import BatchPart, PackedBatch

T = TypeVar("T")

TIMEOUT_SECONDS = 600
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLostError(RuntimeError):
    """Another process has ended, or has not answered in time: there is nothing left but `end_process`."""


def rank() -> int:
    """Number of this process, from 0; process 0 is the one that writes and prints."""
    return dist.get_rank() if _has_group() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _has_group() else 1


def launched() -> tuple[int, int] | None:
    """Rank and number of processes by the environment that torchrun makes; None where it did not."""
    if not all(name in os.environ for name in _VARIABLES):
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def local_rank() -> int:
    """Number of this process on its machine, and of the GPU that it uses."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK must be below {torch.cuda.device_count()}, the number of CUDA devices, got "
            f"{number}: start fewer processes with --nproc-per-node"
        )
    return number


@contextmanager
def process_group(device: torch.device, timeout_seconds: float) -> Iterator[None]:
    """Join the processes that torchrun started, if it did, by gloo on CPUs and by NCCL on GPUs.

    A process that another one leaves waiting for longer than the timeout gives up. With NCCL it is
    torch's watchdog that ends it then, with a report of its own. After an exception the group is left as
    it is: see `end_process`.

    Raises
    ------
    ProcessLostError
        If the others do not come in time.
    """
    if launched() is None:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with telling_of_lost_processes():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds)
        )
    yield
    dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process without tearing the group down, which can wait forever for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def telling_of_lost_processes() -> Iterator[None]:
    """Turn torch's errors of communication into a `ProcessLostError` in one line."""
    try:
        yield
    except RuntimeError as error:
        # gloo's are plain RuntimeErrors, which name its source files.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # "[source file] What happened. Advice" or, of the store, "What happened\n" and a stack.
        reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise ProcessLostError(
            f"another process has ended or does not answer ({reason}); a training goes on from its "
            f"last checkpoint when it is started again"
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in process 0, in all of them; an exception there is raised in all."""
    if size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    with telling_of_lost_processes():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    value: T = outcome[0]
    return value


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with telling_of_lost_processes():
        dist.all_gather_object(values, value)
    return values


def average(values: Tensor) -> Tensor:
    """The average of the processes' tensors of one shape, on the device of the model."""
    if size() == 1:
        return values
    total = values.clone()
    with telling_of_lost_processes():
        dist.all_reduce(total)
    return total / size()


def check_same(**values: Any) -> None:
    """Refuse, in all processes, what is not the same in all of them.

    Raises
    ------
    ValueError
        Naming the first value that differs, and two that it has.
    """
    everywhere = gather(values)
    for name in values:
        for process, theirs in enumerate(everywhere):
            if theirs[name] != everywhere[0][name]:
                raise ValueError(
                    f"{name} must be the same in every process, got {everywhere[0][name]!r} in "
                    f"process 0 and {theirs[name]!r} in process {process}"
                )


def share_generator() -> None:
    """Let torch's generator on the CPU go on everywhere as in process 0."""
    if size() > 1:
        torch.set_rng_state(from_first(torch.get_rng_state))


def share(count: int, unit: int) -> slice:
    """The rows, of `count`, that this process looks at: whole units of consecutive ones, but for the last.

    The batches of an evaluation are then those of one process, and so is what it finds.
    """
    num_units = -(-count // unit)
    first, last = (num_units * (rank() + i) // size() * unit for i in (0, 1))
    return slice(first, min(last, count))


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Refuse, by a ValueError, a batch that leaves processes without a sequence."""
    if batch_size < num_processes:
        raise ValueError(
            f"batch_size must be at least {num_processes}, the number of processes that share a "
            f"batch, got {batch_size}"
        )


def shard(batch: PackedBatch, process: int, num_processes: int) -> BatchPart:
    """The part of a batch on the CPU that one process trains on: consecutive sequences, at least one.

    The parts are disjoint, make up the batch, and are cut where their numbers of tokens are closest
    to equal.
    """
    num_sequences = len(batch.users)
    check_batch_size(num_sequences, num_processes)
    assert batch.positives is not None
    assert batch.negatives is not None
    offsets = batch.cu_seqlens.numpy().astype(np.int64)
    inner = np.arange(1, num_processes)
    nearest = np.searchsorted((offsets[1:] + offsets[:-1]) / 2, offsets[-1] * inner / num_processes)
    # One sequence each, whatever their lengths.
    spare = np.maximum.accumulate(nearest - inner).clip(0, num_sequences - num_processes)
    bounds = [0, *(spare + inner).tolist(), num_sequences]
    first, last = bounds[process : process + 2]
    start, end = offsets[first], offsets[last]
    positives = batch.positives[start:end]
    num_targets = int(batch.positives[: offsets[-1]].count_nonzero())
    return BatchPart(
        users=batch.users[first:last],
        items=batch.items[start:end],
        positions=batch.positions[start:end],
        cu_seqlens=batch.cu_seqlens[first : last + 1] - batch.cu_seqlens[first],
        max_seqlen=int(np.diff(offsets[first : last + 1]).max()),
        positives=positives,
        negatives=batch.negatives[start:end],
        process=process,
        first_sequence=first,
        first_token=int(start),
        target_share=int(positives.count_nonzero()) / max(1, num_targets),
    )


def check_same_batch(batch: PackedBatch) -> None:
    """Refuse samplers that draw another batch in another process."""
    sha = hashlib.sha256()
    for ids in (batch.users, batch.items, batch.positives, batch.negatives):
        assert ids is not None
        sha.update(ids.numpy().tobytes())
    check_same(**{"the sampler's batch (give it a seed)": sha.hexdigest()[:16]})


class _LossModule(nn.Module):
    """A model's loss as what it computes, because DistributedDataParallel reduces the gradients of a forward."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: PackedBatch, seed: Tensor) -> Tensor:
        return self._loss(batch, seed)


def data_parallel(model: nn.Module, loss: Loss) -> Loss:
    """The loss of a `BatchPart` such that gradients, averaged over processes, are those of the whole batch.

    Its own average over processes is the loss of the whole batch. All processes begin with the
    parameters of process 0.
    """
    with telling_of_lost_processes():
        parallel = DistributedDataParallel(_LossModule(model, loss), gradient_as_bucket_view=True)

    def weighted(batch: PackedBatch, seed: Tensor) -> Tensor:
        assert isinstance(batch, BatchPart)
        value: Tensor = parallel(batch, seed)
        return value * (batch.target_share * size())

    return weighted


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
