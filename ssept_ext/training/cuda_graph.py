"""Captures one training step in a CUDA graph and replays it on new batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data.packed import TENSORS, PackedBatch, RowNumbers
from ssept_ext.training.batch_shape import MISFIT_RATES, BatchShape
from ssept_ext.training.step import EagerStep, Step

Replay = Callable[[], Tensor]
"""Replays the captured step and returns its loss."""

_ITEMS = ("items", "positives", "negatives")
_EAGER_STEPS_BEFORE_CAPTURE = 3


def training_step(
    eager_step: EagerStep,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    seq_max_len: int,
    num_processes: int = 1,
    lengths: NDArray[np.int64] | None = None,
    capture: bool = True,
    table_sizes: Sequence[int] = (),
) -> Step:
    """Make the fastest step for a device: CUDA graphs (see `growing_step`) on a GPU, if this is the only process."""
    if device.type == "cuda" and num_processes > 1:
        warnings.warn(
            f"training takes eager steps, because {num_processes} processes share them",
            stacklevel=2,
        )
    if device.type != "cuda" or num_processes > 1 or not capture:
        return lambda batch, seed: eager_step(batch.to(device), seed.to(device))
    return growing_step(
        eager_step, optimizer, device, seq_max_len, lengths, table_sizes=table_sizes
    )


def growing_step(
    eager_step: EagerStep,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    seq_max_len: int,
    lengths: NDArray[np.int64] | None = None,
    gpu: _Gpu | None = None,
    table_sizes: Sequence[int] = (),
) -> Step:
    """Make a step that replays a CUDA graph, and captures a larger one if a batch has too many tokens.

    The capacity grows at most twice; the second time, it becomes the largest number of tokens that a batch can have.
    Changes of the optimizer's settings affect the graph only if they are tensors that are changed in place.

    Parameters
    ----------
    lengths
        The lengths that the lengths of sequences are drawn from; by default those of the first batch.
    table_sizes
        Rows of the item table and, if there is one, of the user table, for batches with `numbers`.
    """
    if gpu is None and device.type == "cuda":
        gpu = _Gpu(device)
    graphed: CudaGraphStep | None = None
    misfit_rates = iter(MISFIT_RATES)

    def step(batch: PackedBatch, seed: Tensor) -> Tensor:
        nonlocal graphed, lengths
        if lengths is None:
            lengths = batch.cu_seqlens.diff().long().numpy()
        if graphed is None or graphed.may_grow_for(batch):
            if graphed is not None:
                graphed.close()
            shape = BatchShape.like(
                batch, seq_max_len, lengths, next(misfit_rates, 0.0), table_sizes
            )
            graphed = CudaGraphStep(eager_step, optimizer, device, seq_max_len, shape, gpu)
        return graphed(batch, seed)

    return step


class _Buffer:
    """A seed and a batch of fixed shape in one block of memory, so that one copy moves everything."""

    def __init__(
        self, shape: BatchShape, max_seqlen: int, device: torch.device, pinned: bool = False
    ) -> None:
        tokens, sequences = shape.capacity, shape.batch_size
        sizes = {
            "seed": 1,
            "users": sequences,
            "items": tokens,
            "positions": tokens,
            "positives": tokens,
            "negatives": shape.num_negative_sets * shape.num_negatives,
            "cu_seqlens": (sequences + 2) // 2,  # int32, two to an int64
        }
        if shape.has_times:
            sizes |= {"times": tokens, "target_times": tokens}
        if shape.num_item_ids:
            sizes |= {f"numbers.{name}": sizes[name] for name in ("users", *_ITEMS)}
            sizes |= {"item_ids": shape.num_item_ids, "user_ids": shape.num_user_ids}
        self.memory = torch.zeros(
            sum(sizes.values()), dtype=torch.int64, device=device, pin_memory=pinned
        )
        part = dict(zip(sizes, torch.split(self.memory, list(sizes.values())), strict=True))
        self.seed = part["seed"]
        negatives = part["negatives"].view(shape.num_negative_sets, shape.num_negatives)
        self.batch = PackedBatch(
            users=part["users"],
            items=part["items"],
            positions=part["positions"],
            cu_seqlens=part["cu_seqlens"].view(torch.int32)[: sequences + 1],
            max_seqlen=max_seqlen,
            times=part.get("times"),
            target_times=part.get("target_times"),
            positives=part["positives"],
            negatives=negatives,
            negatives_per=shape.negatives_per,
            ids_replaced=True,  # where the model has SSE: a captured step cannot
        )
        if shape.num_item_ids:
            numbers = RowNumbers(
                item_ids=part["item_ids"],
                user_ids=part["user_ids"],
                users=part["numbers.users"],
                items=part["numbers.items"],
                positives=part["numbers.positives"],
                negatives=part["numbers.negatives"].view_as(negatives),
            )
            self.batch = replace(self.batch, numbers=numbers)

    def fill(self, batch: PackedBatch, seed: Tensor) -> None:
        """Copy a batch and a seed on the CPU into this buffer; tail padding becomes zeros."""
        self.seed.copy_(seed)
        tensors = [(getattr(self.batch, name), getattr(batch, name)) for name in TENSORS]
        if self.batch.numbers is not None:
            tensors += zip(
                vars(self.batch.numbers).values(), vars(batch.numbers).values(), strict=True
            )
        for mine, given in tensors:
            if mine is not None:
                mine[: len(given)] = given
                mine[len(given) :] = 0


class CudaGraphStep:
    """A training step on batches with up to a fixed number of tokens.

    The first steps are eager, to warm up; then one step is captured in a CUDA graph, and all later steps replay it.
    Each batch is written to pinned memory and copied to the GPU on another stream while the previous step runs. The
    host does not wait for the step. A batch that does not fit takes an eager step. If the capture fails, a warning says
    why, and all steps are eager. On a CPU, all steps are eager, on the same padded buffers.

    The graph keeps the optimizer's settings at the time of the capture, except for tensors, which every replay reads.
    """

    def __init__(
        self,
        step: EagerStep,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        seq_max_len: int,
        shape: BatchShape,
        gpu: _Gpu | None = None,
    ) -> None:
        """Prepare for batches of `shape`. On a GPU, sets the optimizer's `capturable` flag, if it has one."""
        self.shape = shape
        self._eager_step, self._optimizer, self._device = step, optimizer, device
        self._input = _Buffer(shape, seq_max_len, device)
        self._gpu = _Gpu(device) if gpu is None and device.type == "cuda" else gpu
        self._replay: Replay | None = None
        self._eager_steps_left: float = _EAGER_STEPS_BEFORE_CAPTURE
        if self._gpu is not None:
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True
            self._gpu.prepare(self._input, shape)

    def __call__(self, batch: PackedBatch, seed: Tensor) -> Tensor:
        """Take a step on a batch and a seed on the CPU and return the loss, which the next step overwrites."""
        if not self.shape.fits(batch):
            return self._eager_step(batch.to(self._device), seed.to(self._device))
        if self._gpu is None:
            self._input.fill(batch, seed)
            return self._step_on_input()
        self._gpu.send(batch, seed)
        if self._replay is None and self._eager_steps_left == 0:
            self._capture(self._gpu)
        if self._replay is not None:
            return self._replay()
        self._eager_steps_left -= 1
        return self._gpu.run(self._step_on_input)

    def may_grow_for(self, batch: PackedBatch) -> bool:
        """Whether this batch does not fit, and would fit a graph with a larger capacity."""
        tokens = len(batch.items)
        has_failed = math.isinf(self._eager_steps_left)
        return (
            tokens > self.shape.capacity
            and replace(self.shape, capacity=tokens).fits(batch)
            and not has_failed
        )

    def close(self) -> None:
        """Free the memory of the graph, including the gradients, which are in it."""
        self._replay = None
        self._optimizer.zero_grad()

    def _step_on_input(self) -> Tensor:
        return self._eager_step(self._input.batch, self._input.seed)

    def _capture(self, gpu: _Gpu) -> None:
        self._optimizer.zero_grad()  # so that the captured backward allocates the gradients in the graph's memory
        try:
            self._replay = gpu.capture(self._step_on_input)
        except CaptureError as error:
            warnings.warn(f"training takes eager steps, because {error}", stacklevel=3)
            self._eager_steps_left = math.inf


class CaptureError(RuntimeError):
    """A step could not be captured in a CUDA graph; says why, and whether the process can still capture others."""


class _Gpu:
    """The GPU side of `CudaGraphStep`: a stream for copies, and one for warm-up and capture."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The eager steps use this stream too: autograd remembers the stream on which a parameter was first used.
        self._capturing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._transfers: list[_Transfer] = []

    def prepare(self, target: _Buffer, shape: BatchShape) -> None:
        """Make the double buffer for copies to `target`, replacing any earlier one."""
        self._transfers = [_Transfer(target, shape) for _ in range(2)]

    def send(self, batch: PackedBatch, seed: Tensor) -> None:
        """Queue the copy of a batch on the CPU to the graph's input, after the work of the current stream."""
        self._transfers.reverse()
        self._transfers[0].send(batch, seed, self._copies)

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Take an eager step on the stream that is used for the capture later, to warm up."""
        current = torch.cuda.current_stream(self._device)
        self._capturing.wait_stream(current)
        with torch.cuda.stream(self._capturing):
            loss = step()
        current.wait_stream(self._capturing)
        return loss

    def capture(self, step: Callable[[], Tensor]) -> Replay:
        """Capture a step without running it. Replays return its loss, always in the same memory."""
        graph = torch.cuda.CUDAGraph()
        # Made here, because `graph.pool()` is not available after a failed capture.
        pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self._device)
        reason: Exception | None = None
        try:
            with torch.cuda.graph(graph, pool, self._capturing):
                try:
                    loss = step()
                except Exception as error:
                    reason = error
                    raise
        except RuntimeError as error:
            # After a failure, `torch.cuda.graph` does not restore the current stream.
            torch.cuda.set_stream(current)
            # If the step failed, ending the capture fails too, with a less helpful error.
            message = f"capturing one in a CUDA graph failed: {reason or error}"
            try:
                _undo_failed_capture(graph, pool, self._capturing)
            except RuntimeError as second:
                message += f"; this process cannot capture any more: {second}"
            raise CaptureError(message) from error

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


_failed_graphs: list[torch.cuda.CUDAGraph] = []


def _undo_failed_capture(
    graph: torch.cuda.CUDAGraph, pool: tuple[int, int], stream: torch.cuda.Stream
) -> None:
    """Repair torch's state after a failed capture; raises a RuntimeError if that is impossible.

    If a capture fails, `CUDAGraph.capture_end` (torch 2.11) throws before it has told the allocator and the random
    generator that the capture is over. The allocator then refuses `empty_cache`, which every capture starts with, and
    the generator refuses to draw numbers outside a graph.
    """
    # The allocator of pinned memory still refers to the graph, and Python cannot change that: keep the graph alive.
    _failed_graphs.append(graph)
    index = stream.device.index
    # The first call raises if `capture_end` already made it; the graph then releases the pool.
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    with suppress(RuntimeError):
        graph.reset()
    current = torch.cuda.current_stream(index)
    try:
        # A successful capture resets the generator. It must not be empty, which would cause a warning.
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
            torch.zeros(1, device=stream.device)
    finally:
        torch.cuda.set_stream(current)


class _Transfer:
    """One half of a double buffer: while a step reads one half, the next batch is copied into the other."""

    def __init__(self, target: _Buffer, shape: BatchShape) -> None:
        device = target.memory.device
        self._target = target
        self._pinned = _Buffer(shape, target.batch.max_seqlen, torch.device("cpu"), pinned=True)
        self._staging = torch.empty_like(target.memory)
        self._arrived, self._taken = (torch.cuda.Event() for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.current_stream(device).synchronize()  # so that all streams may use `_staging`

    def send(self, batch: PackedBatch, seed: Tensor, copies: torch.cuda.Stream) -> None:
        """Queue the copy of a batch to the graph's input, after the work of the current stream."""
        self._arrived.synchronize()  # wait for the copy of two steps ago: the pinned memory is reused
        self._pinned.fill(batch, seed)
        copies.wait_event(self._taken)
        with torch.cuda.stream(copies):
            self._staging.copy_(self._pinned.memory, non_blocking=True)
            self._arrived.record()
        current = torch.cuda.current_stream(self._staging.device)
        current.wait_event(self._arrived)
        self._target.memory.copy_(self._staging)
        self._taken.record(current)
