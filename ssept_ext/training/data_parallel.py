"""Data-parallel training: each process takes a part of every batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssept_ext.data.packed import BatchPart, PackedBatch
from ssept_ext.distributed import check_same, raise_if_peer_lost, size
from ssept_ext.training.step import Loss


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Raise a ValueError if a batch has fewer sequences than there are processes."""
    if batch_size < num_processes:
        raise ValueError(
            f"batch_size must be at least {num_processes}, the number of processes that share a "
            f"batch, got {batch_size}"
        )


def shard(batch: PackedBatch, process: int, num_processes: int) -> BatchPart:
    """Return the part of a batch on the CPU that one process trains on: one or more consecutive sequences.

    The parts of all processes are disjoint and cover the batch. The cuts are chosen to make their numbers of tokens as
    equal as possible.
    """
    num_sequences = len(batch.users)
    check_batch_size(num_sequences, num_processes)
    assert batch.positives is not None
    assert batch.negatives is not None
    offsets = batch.cu_seqlens.numpy().astype(np.int64)
    inner = np.arange(1, num_processes)
    nearest = np.searchsorted((offsets[1:] + offsets[:-1]) / 2, offsets[-1] * inner / num_processes)
    # Every part gets at least one sequence, whatever the lengths.
    spare = np.maximum.accumulate(nearest - inner).clip(0, num_sequences - num_processes)
    bounds = [0, *(spare + inner).tolist(), num_sequences]
    first, last = bounds[process : process + 2]
    start, end = offsets[first], offsets[last]
    positives = batch.positives[start:end]
    times = [None if x is None else x[start:end] for x in (batch.times, batch.target_times)]
    rows = batch.negatives_of(slice(first, last), slice(start, end))
    num_targets = int(batch.positives[: offsets[-1]].count_nonzero())
    return BatchPart(
        users=batch.users[first:last],
        items=batch.items[start:end],
        positions=batch.positions[start:end],
        cu_seqlens=batch.cu_seqlens[first : last + 1] - batch.cu_seqlens[first],
        max_seqlen=int(np.diff(offsets[first : last + 1]).max()),
        times=times[0],
        target_times=times[1],
        positives=positives,
        negatives=batch.negatives[rows],
        negatives_per=batch.negatives_per,
        ids_replaced=batch.ids_replaced,
        numbers=None
        if batch.numbers is None
        else replace(  # in the rows of the whole batch: gradients of these can be averaged
            batch.numbers,
            users=batch.numbers.users[first:last],
            items=batch.numbers.items[start:end],
            positives=batch.numbers.positives[start:end],
            negatives=batch.numbers.negatives[rows],
        ),
        process=process,
        first_sequence=first,
        first_token=int(start),
        target_share=int(positives.count_nonzero()) / max(1, num_targets),
    )


def check_same_batch(batch: PackedBatch) -> None:
    """Check that the samplers of all processes drew the same batch; a ValueError otherwise."""
    sha = hashlib.sha256()
    for ids in (batch.users, batch.items, batch.positives, batch.negatives):
        assert ids is not None
        sha.update(ids.numpy().tobytes())
    check_same(**{"the sampler's batch (give it a seed)": sha.hexdigest()[:16]})


class LossModule(nn.Module):
    """Computes a loss of a model in `forward`, for functions that call or hook only that."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: PackedBatch, seed: Tensor) -> Tensor:
        return self._loss(batch, seed)


def data_parallel(model: nn.Module, loss: Loss, apart: Iterable[str] = ()) -> Loss:
    """Make a loss of a `BatchPart` whose average over the processes, and that of its gradients, is the whole batch's.

    All processes start from the parameters of process 0. The gradients of the parameters named in `apart` are not
    averaged.
    """
    module = LossModule(model, loss)
    names = [f"model.{name}" for name in apart]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
    with raise_if_peer_lost():
        for name in names:
            dist.broadcast(module.get_parameter(name).data, 0)
        # After its first step, DistributedDataParallel puts the gradients in another order, in which three or more
        # processes round other sums, so that a resumed training would end otherwise. It does not where it looks for
        # unused parameters, which is cheap on CPUs, but it warns if there is none.
        is_exact = next(model.parameters()).device.type == "cpu"
        if is_exact:
            module.unused = nn.Parameter(torch.zeros(1))
        parallel = DistributedDataParallel(
            module,
            broadcast_buffers=False,  # features of items, which never change
            gradient_as_bucket_view=True,
            find_unused_parameters=is_exact,
        )

    def weighted(batch: PackedBatch, seed: Tensor) -> Tensor:
        assert isinstance(batch, BatchPart)
        value: Tensor = parallel(batch, seed)
        return value * (batch.target_share * size())

    return weighted
