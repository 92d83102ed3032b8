"""One training step: loss, gradients and update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssept_ext.data.packed import PackedBatch
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.sampling.protocols import Sampler
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.table_rows import TableRows

Loss = Callable[[PackedBatch, Tensor], Tensor]
"""(batch, (1,) int64 seed), both on the model's device -> scalar loss. Tail padding does not count."""
EagerStep = Callable[[PackedBatch, Tensor], Tensor]
"""Takes a training step: (batch, seed), both on the model's device -> detached loss."""
Step = Callable[[PackedBatch, Tensor], Tensor]
"""Takes a training step: (batch with positives and negatives, seed), both on the CPU -> detached loss, on the model's
device."""


def draw_seeds(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `count` seeds for dropout and SSE, int64 on the CPU, by default from torch's global generator."""
    return torch.randint(2**63 - 1, (count,), generator=generator, device="cpu")


def make_loss(model: SequentialRecommender, sampler: Sampler, options: TrainingOptions) -> Loss:
    """Make the loss that the options name. It uses the sampler's probabilities of negatives, and autocast for bf16."""
    log_probs = None
    if options.loss == "sampled_softmax":
        drawn = getattr(sampler, "negative_log_probs", None)
        # Negatives are uniform then, which cancels unless the positive is left out.
        if drawn is None and options.logq_correction == "negatives":
            drawn = np.full(model.item_num + 1, -np.log(model.item_num))
        if drawn is not None:
            log_probs = torch.from_numpy(drawn).float().to(model.device)

    def loss(batch: PackedBatch, seed: Tensor) -> Tensor:
        of_rows = log_probs
        if log_probs is not None and batch.tables is not None:
            assert batch.numbers is not None
            of_rows = log_probs[batch.numbers.item_ids]
        with torch.autocast(
            model.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"
        ):
            return model.training_loss(
                batch,
                loss=options.loss,
                gbce_t=options.gbce_t,
                negative_log_probs=of_rows,
                logq_correction=options.logq_correction,
                seed=seed,
            )

    return loss


def make_optimizer(
    model: SequentialRecommender, learning_rate: float, options: TrainingOptions
) -> torch.optim.Adam:
    """Make Adam with the epsilon of Keras. Its coupled weight decay on the tables is the gradient of the L2 term.

    It has all parameters but those that a row-wise `table_optimizer` trains.
    """
    tables = model.embedding_tables()
    ids = {id(table) for table in tables}
    others = [p for p in model.parameters() if id(p) not in ids]
    if options.table_optimizer != "adam":
        apart = {id(table) for table in model.lookup_tables().values()}
        tables = [table for table in tables if id(table) not in apart]
    groups: list[dict[str, Any]] = [{"params": [*tables, *others]}]  # a kernel each on a GPU
    if model.l2_reg:
        groups = [{"params": tables, "weight_decay": model.l2_reg}, {"params": others}]
    return torch.optim.Adam(
        groups,
        lr=learning_rate,
        betas=options.adam_betas,
        eps=1e-7,
        fused=tables[0].device.type in ("cpu", "cuda"),
    )


def eager_step(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    max_grad_norm: float | None = None,
    rows: TableRows | None = None,
) -> EagerStep:
    """Make an eager training step, with gradient clipping if a norm is given. It never waits for the device.

    With `rows`, batches must have `numbers`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    one: Tensor | None = None  # the gradient of the loss, which autograd would make in every step

    def step(batch: PackedBatch, seed: Tensor) -> Tensor:
        nonlocal one
        optimizer.zero_grad()
        if rows is not None:
            batch = rows.gather(batch)
        value = loss(batch, seed)
        one = torch.ones_like(value) if one is None else one
        value.backward(one)  # type: ignore[no-untyped-call]
        more = rows.collect(batch) if rows is not None else []
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([*parameters, *more], max_grad_norm)
        optimizer.step()
        if rows is not None:
            rows.finish(batch)
        return value.detach()

    return step
