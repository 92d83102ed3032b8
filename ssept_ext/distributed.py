"""Processes that train one model together, and what they exchange.

`torchrun --nproc-per-node=N -m ssept_ext train ...` starts them. In a script of your own, call
`torch.distributed.init_process_group` before `train_model`. All processes must get the same data,
sampler (with a seed) and arguments, and see the same checkpoint folder. Without a process group,
every function here behaves as in a single process.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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
    with raise_if_peer_lost():
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
def raise_if_peer_lost() -> Iterator[None]:
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


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """What `make` returns in process 0, in all of them; an exception there is raised in all."""
    if size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    with raise_if_peer_lost():
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
    with raise_if_peer_lost():
        dist.all_gather_object(values, value)
    return values


def average(values: Tensor) -> Tensor:
    """The average of the processes' tensors of one shape, on the device of the model."""
    if size() == 1:
        return values
    total = values.clone()
    with raise_if_peer_lost():
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
        torch.set_rng_state(broadcast_from_rank0(torch.get_rng_state))


def rank_slice(count: int, unit: int) -> slice:
    """The rows, of `count`, that this process looks at: whole units of consecutive ones, but for the last.

    The batches of an evaluation are then those of one process, and so is what it finds.
    """
    num_units = -(-count // unit)
    first, last = (num_units * (rank() + i) // size() * unit for i in (0, 1))
    return slice(first, min(last, count))


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
