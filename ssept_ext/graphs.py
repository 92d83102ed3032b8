"""Training steps without the host in between: captured once in a CUDA graph, replayed on new batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssept_ext.packing import PackedBatch

Loss = Callable[[PackedBatch, Tensor], Tensor]
"""Of a batch and a seed, (1,) int64, on the model's device: a scalar, in which spare tokens must not count."""
Work = Callable[[PackedBatch, Tensor], Tensor]
"""Takes a training step on a batch and a seed on the model's device; its loss, without gradient."""
Step = Callable[[PackedBatch], Tensor]
"""Takes a training step on a batch with positives and negatives on the CPU; its loss, without gradient, on the model's
device."""

_EAGER_STEPS_BEFORE_CAPTURE = 3


def training_work(
    optimizer: torch.optim.Optimizer, loss: Loss, max_grad_norm: float | None = None
) -> Work:
    """Loss, gradients, clipped to a norm where one is given, and update. Never waits for the device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def work(batch: PackedBatch, seed: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(batch, seed)
        value.backward()  # type: ignore[no-untyped-call]
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        return value.detach()

    return work


def training_step(
    work: Work,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    seq_max_len: int,
    num_processes: int = 1,
) -> Step:
    """The fastest step for a device: on a GPU by a CUDA graph, made for batches like the first one.

    A graph sees changes of settings of the optimizer only where these are tensors, written to in place.
    Steps that several processes share are eager.
    """
    if device.type == "cuda" and num_processes > 1:
        warnings.warn(
            f"training takes eager steps, as {num_processes} processes share them", stacklevel=2
        )
    if device.type != "cuda" or num_processes > 1:
        return lambda batch: work(batch.to(device), _draw_seed().to(device))
    graphed: GraphedStep | None = None

    def step(batch: PackedBatch) -> Tensor:
        nonlocal graphed
        if graphed is None:
            shape = BatchShape.like(batch, seq_max_len)
            graphed = GraphedStep(work, optimizer, device, seq_max_len, shape)
        return graphed(batch)

    return step


def _draw_seed() -> Tensor:
    """(1,) of all that a step draws at random, from torch's global generator."""
    return torch.randint(2**63 - 1, (1,))


@dataclass(frozen=True)
class BatchShape:
    """The sizes that a graph is captured for."""

    capacity: int
    """Tokens that fit; those a batch has not are spare, see `PackedBatch`."""
    batch_size: int
    num_negatives: int

    @staticmethod
    def like(batch: PackedBatch, seq_max_len: int) -> BatchShape:
        """A shape that nearly all batches fit of which this is one, on the CPU: three standard deviations above it."""
        assert batch.negatives is not None
        lengths = batch.cu_seqlens.diff().double()
        batch_size = len(batch.users)
        spread = 3 * batch_size**0.5 * lengths.std(correction=0).item() if batch_size else 0.0
        capacity = min(len(batch.items) + math.ceil(spread), batch_size * seq_max_len)
        return BatchShape(-(-capacity // 64) * 64, batch_size, batch.negatives.shape[1])

    def fits(self, batch: PackedBatch) -> bool:
        """Whether the batch can take the place of the one that was captured."""
        assert batch.negatives is not None
        return (
            len(batch.items) <= self.capacity
            and len(batch.users) == self.batch_size
            and batch.negatives.shape[1] == self.num_negatives
        )


class _Buffer:
    """A dropout seed and a batch of fixed shape in one piece of memory, so that one copy moves all of it."""

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
            "negatives": tokens * shape.num_negatives,
            "cu_seqlens": (sequences + 2) // 2,  # int32 in the room of int64
        }
        self.memory = torch.zeros(
            sum(sizes.values()), dtype=torch.int64, device=device, pin_memory=pinned
        )
        part = dict(zip(sizes, torch.split(self.memory, list(sizes.values())), strict=True))
        self.seed = part["seed"]
        self.batch = PackedBatch(
            users=part["users"],
            items=part["items"],
            positions=part["positions"],
            cu_seqlens=part["cu_seqlens"].view(torch.int32)[: sequences + 1],
            max_seqlen=max_seqlen,
            positives=part["positives"],
            negatives=part["negatives"].view(tokens, shape.num_negatives),
        )

    def fill(self, batch: PackedBatch, seed: Tensor) -> None:
        """Take over a batch and a seed on the CPU; spare tokens become zeros."""
        self.seed.copy_(seed)
        for name in (f.name for f in fields(PackedBatch) if f.name != "max_seqlen"):
            mine, given = getattr(self.batch, name), getattr(batch, name)
            mine[: len(given)] = given
            mine[len(given) :] = 0


class GraphedStep:
    """A training step on batches of up to a fixed number of tokens.

    The first steps run eagerly, as a capture needs; then one is captured in a CUDA graph, and all later ones replay
    it. Each batch is written to pinned memory and copied to the GPU on a stream of its own while the step before it
    runs. Nothing waits for the GPU. A batch that does not fit takes an eager step. Where the capture fails, a warning
    says why, and all steps are eager. On a CPU they always are, on the same padded buffers.

    The optimizer's settings are captured as they are then, but for tensors, which are read in every step.
    """

    def __init__(
        self,
        work: Work,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        seq_max_len: int,
        shape: BatchShape,
    ) -> None:
        """Prepare for batches of `shape`; sets `capturable` in an optimizer on a GPU that has it."""
        self.shape = shape
        self._work, self._optimizer, self._device = work, optimizer, device
        self._input = _Buffer(shape, seq_max_len, device)
        self._on_gpu = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._graph_loss: Tensor | None = None
        self._eager_steps_left: float = _EAGER_STEPS_BEFORE_CAPTURE if self._on_gpu else math.inf
        if self._on_gpu:
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # For the eager steps too: autograd remembers the stream on which a parameter was first used.
            self._capturing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._transfers = [_Transfer(self._input, shape) for _ in range(2)]

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Take a step on a batch on the CPU; the loss is overwritten by the next step."""
        seed = _draw_seed()
        if not self.shape.fits(batch):
            return self._work(batch.to(self._device), seed.to(self._device))
        if self._on_gpu:
            self._transfers.reverse()
            self._transfers[0].send(batch, seed, self._copies)
        else:
            self._input.fill(batch, seed)
        if self._graph is None and self._eager_steps_left == 0:
            self._capture()
        if self._graph is None:
            self._eager_steps_left -= 1
            return self._step_beside_capture() if self._on_gpu else self._step_on_input()
        assert self._graph_loss is not None
        self._graph.replay()
        return self._graph_loss

    def _step_on_input(self) -> Tensor:
        return self._work(self._input.batch, self._input.seed)

    def _step_beside_capture(self) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._capturing.wait_stream(current)
        with torch.cuda.stream(self._capturing):
            loss = self._step_on_input()
        current.wait_stream(self._capturing)
        return loss

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad()  # so that the captured backward makes gradients of its own
        try:
            with torch.cuda.graph(graph, stream=self._capturing):
                self._graph_loss = self._step_on_input()
        except RuntimeError as error:
            warnings.warn(
                f"training takes eager steps, as capturing one in a CUDA graph failed: {error}",
                stacklevel=2,
            )
            self._eager_steps_left = math.inf
            return
        self._graph = graph


class _Transfer:
    """One of the two ways for batches to the GPU: while a step reads the one, the next batch comes on the other."""

    def __init__(self, target: _Buffer, shape: BatchShape) -> None:
        device = target.memory.device
        self._target = target
        self._pinned = _Buffer(shape, target.batch.max_seqlen, torch.device("cpu"), pinned=True)
        self._staging = torch.empty_like(target.memory)
        self._arrived, self._taken = (torch.cuda.Event() for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.current_stream(device).synchronize()  # `_staging` is there for every stream

    def send(self, batch: PackedBatch, seed: Tensor, copies: torch.cuda.Stream) -> None:
        """Queue the batch into the target, behind what the current stream has to do."""
        self._arrived.synchronize()  # of two steps ago: the pinned memory may be written again
        self._pinned.fill(batch, seed)
        copies.wait_event(self._taken)
        with torch.cuda.stream(copies):
            self._staging.copy_(self._pinned.memory, non_blocking=True)
            self._arrived.record()
        current = torch.cuda.current_stream(self._staging.device)
        current.wait_event(self._arrived)
        self._target.memory.copy_(self._staging)
        self._taken.record(current)
