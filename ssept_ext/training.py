"""The training loop behind `SSEPT.train_model`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ssept_ext import ops
from ssept_ext.evaluation import check_at_least, check_dataset_fits, draw_trials, measure
from ssept_ext.graphs import Step, training_step
from ssept_ext.losses import bce
from ssept_ext.packing import PackedBatch, pack

if TYPE_CHECKING:
    from ssept_ext.data import SASRecDataSet
    from ssept_ext.model import SASREC

VALIDATION_SEED = 0
_REFRESH_SECONDS = 0.5

History = dict[str, list[float]]


class Sampler(Protocol):
    """What `train_model` needs of a sampler: recommenders' `next_batch`."""

    def next_batch(self) -> Iterable[ArrayLike]:
        """Users (B,), and input, positive and negative items (B, T), left-padded by 0."""


@runtime_checkable
class PackingSampler(Protocol):
    """What spares `train_model` the padding; `WarpSampler` has it."""

    maxlen: int
    """Columns of the layout that the batch's `positions` refer to."""

    def next_packed(self) -> PackedBatch:
        """A batch on the CPU, with positives and negatives."""


def train_model(
    model: SASREC,
    dataset: SASRecDataSet,
    sampler: Sampler,
    num_epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    val_epoch: int = 0,
    eval_batch_size: int = 256,
    verbose: bool = True,
    *,
    on_epoch_end: Callable[[int, History], None] | None = None,
) -> History:
    """Train by Adam on the sampler's batches.

    As in recommenders, an epoch is `len(dataset.user_train) // batch_size` steps, at least one, and
    the size of a batch is the sampler's own. `model.l2_reg` weighs `0.5 * ||table||**2` of the
    embedding tables only, as in the TensorFlow original (recommenders' torch port decays every
    weight); it acts through the gradient, so the loss in the history is that of the data alone.

    Ctrl-C ends training and returns the epochs finished so far. However training ends, the model is
    left in the mode (train or eval) it was in.

    Parameters
    ----------
    model : `SASREC` or `SSEPT`, on any device
    dataset : gives the number of steps, and the users and items of validation
    sampler : any sampler with recommenders' `next_batch` will do
    num_epochs : at least 1
    batch_size : at least 1; divides the number of users into steps
    learning_rate : positive
    val_epoch : validate after every so many epochs, on the same candidates each time; 0 for never
    eval_batch_size : users per batch of the validation, at least 1
    verbose : show a progress bar with loss and samples (sequences) per second on stderr
    on_epoch_end : called with the number of the epoch, from 1, and the history so far

    Returns
    -------
    dict
        "loss", the mean of each epoch, and "val_ndcg" and "val_hr", one entry per validation.

    Raises
    ------
    ValueError
        If an argument is out of range (named), the dataset has ids that the model does not know, or
        there is nobody to validate on.
    FloatingPointError
        If the loss of a step is not finite; names the first such step. The parameters are then of
        no use.
    """
    for name, value, limit in (
        ("num_epochs", num_epochs, 1),
        ("batch_size", batch_size, 1),
        ("val_epoch", val_epoch, 0),
        ("eval_batch_size", eval_batch_size, 1),
    ):
        check_at_least(name, value, limit)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be finite and positive, got {learning_rate!r}")
    check_dataset_fits(model, dataset)
    trials = None
    if val_epoch:
        trials = draw_trials(
            dataset, "valid", num_neg_test=model.num_neg_test, seed=VALIDATION_SEED
        )

    num_steps = max(1, len(dataset.user_train) // batch_size)
    next_batch = _batch_source(sampler, model.seq_max_len)
    take_step = training_step(model, _adam(model, learning_rate), bce)
    history: History = {"loss": [], "val_ndcg": [], "val_hr": []}
    was_training = model.training
    model.train()
    epoch = 1
    try:
        for epoch in range(1, num_epochs + 1):
            with tqdm(
                total=num_steps,
                desc=f"epoch {epoch}/{num_epochs}",
                unit="step",
                disable=not verbose,
            ) as bar:
                loss = _train_epoch(model, take_step, next_batch, num_steps, epoch, bar)
                history["loss"].append(loss)
                if trials is not None and epoch % val_epoch == 0:
                    ndcg, hr = measure(model, trials, eval_batch_size)
                    history["val_ndcg"].append(ndcg)
                    history["val_hr"].append(hr)
                    bar.set_postfix_str(f"{bar.postfix}, valid NDCG@10 {ndcg:.4f}, HR@10 {hr:.4f}")
            if on_epoch_end is not None:
                on_epoch_end(epoch, history)
    except KeyboardInterrupt:
        if verbose:
            print(f"interrupted in epoch {epoch} of {num_epochs}", file=sys.stderr)
    finally:
        model.train(was_training)
    return history


def _train_epoch(
    model: SASREC,
    take_step: Step,
    next_batch: Callable[[], PackedBatch],
    num_steps: int,
    epoch: int,
    bar: tqdm,
) -> float:
    """Take `num_steps` steps; the mean loss.

    The losses stay on the device and are looked at only when the bar is due, because every look
    makes the host wait for the device.
    """
    losses = torch.zeros(num_steps, dtype=torch.float64, device=model.device)
    num_samples = 0
    start = due = time.monotonic()
    for step in range(num_steps):
        batch = next_batch()
        losses[step] = take_step(batch)
        num_samples += len(batch.users)
        now = time.monotonic()
        if now >= due or step == num_steps - 1:
            due = now + _REFRESH_SECONDS
            mean = _finite_mean(losses[: step + 1], epoch)
            rate = num_samples / (time.monotonic() - start)
            bar.set_postfix_str(f"loss {mean:.4f}, {rate:,.0f} samples/s", refresh=False)
            bar.update(step + 1 - bar.n)
    return mean


def _finite_mean(losses: Tensor, epoch: int) -> float:
    values = losses.cpu()
    ops.raise_pending_errors()
    finite = values.isfinite()
    if not finite.all():
        step = int(finite.logical_not().nonzero()[0])
        raise FloatingPointError(
            f"the loss is {values[step].item()} at step {step + 1} of epoch {epoch}: a smaller "
            f"learning_rate may help, or the parameters were not finite to begin with"
        )
    return values.mean().item()


def _adam(model: SASREC, learning_rate: float) -> torch.optim.Adam:
    """Adam with Keras' epsilon; its (coupled) weight decay is the gradient of the L2 term."""
    tables = model.embedding_tables()
    ids = {id(table) for table in tables}
    others = [p for p in model.parameters() if id(p) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": tables, "weight_decay": model.l2_reg},
        {"params": others},
    ]
    return torch.optim.Adam(
        groups,
        lr=learning_rate,
        eps=1e-7,
        fused=tables[0].device.type in ("cpu", "cuda"),
    )


def _batch_source(sampler: Sampler, seq_max_len: int) -> Callable[[], PackedBatch]:
    """The cheapest way to packed batches of this sampler."""
    if isinstance(sampler, PackingSampler):
        return lambda: _align(sampler.next_packed(), sampler.maxlen, seq_max_len)

    def next_batch() -> PackedBatch:
        users, seq, pos, neg = _arrays(*sampler.next_batch())
        return _align(pack(users, seq, pos, neg), seq.shape[1], seq_max_len)

    return next_batch


def _align(batch: PackedBatch, maxlen: int, seq_max_len: int) -> PackedBatch:
    """Move a batch from `maxlen` columns to `seq_max_len`: both layouts end with the newest event."""
    if maxlen == seq_max_len:
        return batch
    assert batch.positives is not None
    assert batch.negatives is not None
    positions = batch.positions + (seq_max_len - maxlen)
    keep = positions >= 0
    num_kept = F.pad(keep.cumsum(0), (1, 0))
    return PackedBatch(
        users=batch.users,
        items=batch.items[keep],
        positions=positions[keep],
        cu_seqlens=num_kept[batch.cu_seqlens.long()].int(),
        max_seqlen=min(batch.max_seqlen, seq_max_len),
        positives=batch.positives[keep],
        negatives=batch.negatives[keep],
    )


def _arrays(users: ArrayLike, seq: ArrayLike, pos: ArrayLike, neg: ArrayLike) -> list[Tensor]:
    """A batch of whatever kind of sequences as int64 tensors, checked."""
    tensors = []
    for name, ids, ndim in (
        ("users", users, 1),
        ("input_seq", seq, 2),
        ("positive", pos, 2),
        ("negative", neg, 2),
    ):
        array = np.asarray(ids)
        if array.ndim != ndim or array.dtype.kind not in "iu":
            raise ValueError(
                f"sampler.next_batch() must give {name} as a {ndim}-dimensional array of integers, "
                f"got shape {array.shape} of {array.dtype}"
            )
        tensors.append(torch.from_numpy(array.astype(np.int64)))
    num_users, *shapes = (tuple(tensor.shape) for tensor in tensors)
    if len(set(shapes)) > 1 or shapes[0][0] != num_users[0]:
        raise ValueError(
            f"sampler.next_batch() gave {num_users[0]} users with sequences of shapes "
            f"{', '.join(map(str, shapes))}"
        )
    return tensors
