"""Communication between processes that train one model together.

Start them with `torchrun --nproc-per-node=N -m ssept_ext train ...`, or call `torch.distributed.init_process_group`
before `train_model` in a script of your own. All processes must use the same data, sampler (with a seed), arguments and
checkpoint folder. Without a process group, every function here behaves as in a single process.
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
"""How long a process waits for the others, by default."""


_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MAX_PROCESSES = 10**6


class ProcessLostError(RuntimeError):
    """Another process has ended or timed out. The process group is unusable: the only way on is `end_process`."""


def rank() -> int:
    """Return the rank of this process. Process 0 writes files and prints."""
    return dist.get_rank() if _has_group() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _has_group() else 1


def launched() -> tuple[int, int] | None:
    """Return rank and number of processes from torchrun's environment variables; None without torchrun.

    Raises
    ------
    ValueError
        If a variable is not a number, out of range, or missing while there are others; names it.
    """
    missing = [name for name in _VARIABLES if name not in os.environ]
    if "RANK" in missing or "WORLD_SIZE" in missing:
        return None
    world_size = _variable("WORLD_SIZE", 1, _MAX_PROCESSES)
    if missing and world_size == 1:
        return None
    if missing:  # each process would train a model of its own
        raise ValueError(
            f"the environment variable WORLD_SIZE is {world_size}, but there is no {missing[0]}: start the "
            f"processes with torchrun"
        )
    _variable("MASTER_PORT", 1, 65535)
    return _variable("RANK", 0, world_size - 1), world_size


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its GPU."""
    number = _variable("LOCAL_RANK", 0, _MAX_PROCESSES)
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK must be below {torch.cuda.device_count()}, the number of CUDA devices, got "
            f"{number}: start fewer processes with --nproc-per-node"
        )
    return number


@contextmanager
def process_group(device: torch.device, timeout_seconds: float) -> Iterator[None]:
    """Create the process group if torchrun started this process: gloo on CPUs, NCCL on GPUs.

    A process that waits for another one longer than the timeout raises a `ProcessLostError`; with NCCL, torch's
    watchdog ends the process instead. After an exception, the group is not destroyed: see `end_process`.

    Raises
    ------
    ProcessLostError
        If the other processes do not join in time.
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
    """End this process without destroying the group, because destroying it can hang if a peer has died."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def raise_if_peer_lost() -> Iterator[None]:
    """Turn torch's communication errors into a `ProcessLostError` with a one-line message."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, whose messages name its source files.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # Messages are "[source file] reason. advice" or, from the store, "reason\n" and a stack trace.
        reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise ProcessLostError(
            f"another process has ended or does not answer ({reason}); start the training again to "
            f"resume from its last checkpoint"
        ) from error


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Call `make` in process 0 and return its result in all processes; an exception is raised in all of them."""
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
    """Return the values of all processes, in the order of their ranks."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with raise_if_peer_lost():
        dist.all_gather_object(values, value)
    return values


def average(values: Tensor) -> Tensor:
    """Average a tensor, which must be on the model's device, over the processes."""
    return values if size() == 1 else total(values) / size()


def total(values: Tensor) -> Tensor:
    """Add up a tensor, which must be on the model's device, over the processes."""
    if size() == 1:
        return values
    values = values.clone()
    with raise_if_peer_lost():
        dist.all_reduce(values)
    return values


def check_same(**values: Any) -> None:
    """Check that the values are the same in all processes.

    Raises
    ------
    ValueError
        In all processes, if they are not; names the first argument that differs, and two of its values.
    """
    everywhere = gather(values)
    for name in values:
        for process, theirs in enumerate(everywhere):
            if theirs[name] != everywhere[0][name]:
                raise ValueError(
                    f"{name} must be the same in every process, got {everywhere[0][name]!r} in "
                    f"process 0 and {theirs[name]!r} in process {process}"
                )


def share_generator(generator: torch.Generator) -> None:
    """Copy the state of a generator on the CPU from process 0 to all processes."""
    if size() > 1:
        generator.set_state(broadcast_from_rank0(generator.get_state))


def rank_slice(count: int, unit: int) -> slice:
    """Return the rows, out of `count`, that this process evaluates: whole batches of `unit` consecutive rows.

    The batches are the same as in a single process, and so are the results. Only the last batch may be shorter.

    Examples
    --------
    >>> rank_slice(10, unit=4)  # a single process takes all
    slice(0, 10, None)
    """
    num_units = -(-count // unit)
    first, last = (num_units * (rank() + i) // size() * unit for i in (0, 1))
    return slice(first, min(last, count))


def _variable(name: str, least: int, most: int) -> int:
    """Return an integer from the environment, 0 if it is missing."""
    text = os.environ.get(name, "0")
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ValueError(
            f"the environment variable {name} must be an integer in {least}..{most}, got {text!r}"
        )
    return int(text)


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
