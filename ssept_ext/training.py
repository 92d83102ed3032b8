"""The training loop behind `SSEPT.train_model`."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ssept_ext import _extension, distributed, ops
from ssept_ext.checkpoint import TrainingState, load_training, save_training
from ssept_ext.evaluation import check_at_least, check_dataset_fits, draw_trials, measure
from ssept_ext.graphs import Loss, training_step, training_work
from ssept_ext.losses import LossName
from ssept_ext.packing import PackedBatch, pack

if TYPE_CHECKING:
    from ssept_ext.data import SASRecDataSet
    from ssept_ext.model import SASREC

VALIDATION_SEED = 0
_REFRESH_SECONDS = 0.5

History = dict[str, list[float]]
Schedule = Literal["constant", "cosine"]


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


@runtime_checkable
class SeekableSampler(Protocol):
    """What lets a training be taken up again; `WarpSampler` has it."""

    settings: dict[str, int | float]
    """What batches are a function of, but for the histories."""

    def tell(self) -> int:
        """Number of the next batch."""

    def seek(self, index: int) -> None:
        """Go on with that batch."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train, beyond recommenders' arguments: more keywords of `SSEPT.train_model`.

    Raises ValueError naming an option that is out of range.
    """

    loss: LossName = "bce"
    """See `ssept_ext.losses`. "sampled_softmax" corrects for popularity where the sampler draws by it."""
    gbce_t: float = 0.75
    """Calibration of "gbce", in [0, 1]."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments, in [0, 1)."""
    schedule: Schedule = "constant"
    """Of the learning rate: "cosine" falls to 0 over all epochs."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm, that of all parameters together; None for never."""
    bf16: bool = False
    """Compute in bfloat16 by autocast, see `ssept_ext.ops`; parameters, logits and sums stay as they are."""
    patience: int = 0
    """End after this many validations in a row without a better NDCG@10; 0 for never."""
    restore_best: bool = False
    """Leave the model as it was when a validation had the best NDCG@10."""

    def __post_init__(self) -> None:
        for name, known in (("loss", LossName), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f'{name} must be one of {get_args(known)}, got "{getattr(self, name)}"'
                )
        if not 0 <= self.gbce_t <= 1:
            raise ValueError(f"gbce_t must be in [0, 1], got {self.gbce_t}")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas must be two numbers in [0, 1), got {self.adam_betas}")
        for name in ("warmup_steps", "patience"):
            check_at_least(name, getattr(self, name), 0)
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")

    def learning_rate_factor(self, step: int, num_steps: int) -> float:
        """What step `step` of `num_steps`, from 0, multiplies the learning rate with."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))


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
    options: TrainingOptions | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch_end: Callable[[int, History], None] | None = None,
) -> History:
    """Train by Adam on the sampler's batches.

    As in recommenders, an epoch is `len(dataset.user_train) // batch_size` steps, at least one, and
    the size of a batch is the sampler's own. `model.l2_reg` weighs `0.5 * ||table||**2` of the
    embedding tables only, as in the TensorFlow original (recommenders' torch port decays every
    weight); it acts through the gradient, so the loss in the history is that of the data alone.

    Where `torch.distributed` is initialised, its processes train together, by DistributedDataParallel:
    call this in all of them, with the same arguments. Each takes consecutive sequences of every batch,
    so the sampler's batch is the global one, and a step is that of one process but for the dropout
    masks, which every process draws by a seed of its own. Validation is shared, too. Process 0 writes
    checkpoints and shows the bar; any number of processes may take a training up again. On a GPU
    steps are eager.

    Ctrl-C ends training and returns the epochs finished so far. However training ends, the model is
    left in the mode (train or eval) it was in.

    Parameters
    ----------
    model : `SASREC` or `SSEPT`, on any device
    dataset : gives the number of steps, and the users and items of validation
    sampler : any sampler with recommenders' `next_batch` will do
    num_epochs : at least 1
    batch_size : at least 1, and the number of processes; divides the number of users into steps
    learning_rate : positive
    val_epoch : validate after every so many epochs, on the same candidates each time; 0 for never
    eval_batch_size : users per batch of the validation, at least 1
    verbose : show a progress bar with loss and samples (sequences) per second on stderr
    options : loss, schedule and more; the defaults where None
    checkpoint : folder that keeps the state of the training, saved after each epoch. Where it holds one,
        the training goes on from there, the sampler and torch's generator included: killed at any time
        and called again with the same arguments, it ends as if it had never been interrupted, on a
        CPU bit for bit. A finished one returns at once or, where the schedule is constant and
        `num_epochs` larger than before, goes on. Needs a sampler with `seek` and `tell`.
    on_epoch_end : called, in every process, with the number of the epoch, from 1, and the history so far

    Returns
    -------
    dict
        "loss", the mean of each epoch; "seconds" of training, validation not counted, up to the end of
        each epoch; and "val_ndcg" and "val_hr", one entry per validation.

    Raises
    ------
    ValueError
        If an argument is out of range (named) or differs between processes, the dataset has ids that
        the model does not know, there is nobody to validate on, or `checkpoint` is damaged or of a
        training with other arguments.
    ProcessLostError
        If another process ends, or does not answer within the timeout of the process group.
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
    distributed.check_batch_size(batch_size, distributed.size())
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be finite and positive, got {learning_rate!r}")
    options = options or TrainingOptions()
    if (options.patience or options.restore_best) and not val_epoch:
        raise ValueError("patience and restore_best need a val_epoch of at least 1, got 0")
    check_dataset_fits(model, dataset)
    trials = None
    if val_epoch:
        trials = draw_trials(
            dataset, "valid", num_neg_test=model.num_neg_test, seed=VALIDATION_SEED
        )

    num_steps = max(1, len(dataset.user_train) // batch_size)
    next_batch = _batch_source(sampler, model.seq_max_len)
    schedule = partial(options.learning_rate_factor, num_steps=num_steps * num_epochs)
    distributed.check_same(
        num_epochs=num_epochs,
        num_steps=num_steps,
        learning_rate=learning_rate,
        val_epoch=val_epoch,
        eval_batch_size=eval_batch_size,
        options=options,
    )
    training = _Training(model, sampler, learning_rate, options, schedule)
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        if not isinstance(sampler, SeekableSampler):
            raise ValueError(
                f"checkpoint needs a sampler with seek and tell, such as WarpSampler, "
                f"got {type(sampler).__name__}"
            )
        settings = _settings(model, sampler, learning_rate, val_epoch, options, num_steps)
        if options.schedule != "constant":
            settings["num_epochs"] = num_epochs
        training.resume(checkpoint, settings, num_steps)
        distributed.check_same(**{"epochs done by checkpoint": training.epoch})
    history = training.history
    was_training = model.training
    model.train()
    try:
        while training.epoch < num_epochs and not is_out_of_patience(history, options.patience):
            epoch = training.epoch + 1
            distributed.share_generator()
            with tqdm(
                total=num_steps,
                desc=f"epoch {epoch}/{num_epochs}",
                unit="step",
                disable=not verbose or distributed.rank() > 0,
            ) as bar:
                start = time.monotonic()
                with kept_memory():
                    loss = _train_epoch(training, next_batch, num_steps, epoch, bar)
                seconds = time.monotonic() - start
                history["loss"].append(loss)
                history["seconds"].append(sum(history["seconds"][-1:]) + seconds)
                training.epoch = epoch
                if trials is not None and epoch % val_epoch == 0:
                    ndcg, hr = measure(model, trials, eval_batch_size)
                    training.note_validation(ndcg, hr)
                    bar.set_postfix_str(f"{bar.postfix}, valid NDCG@10 {ndcg:.4f}, HR@10 {hr:.4f}")
            if on_epoch_end is not None:
                on_epoch_end(epoch, history)
            if checkpoint is not None and distributed.rank() == 0:
                save_training(training.state(settings), checkpoint)
    except KeyboardInterrupt:
        if verbose and distributed.rank() == 0:
            print(f"interrupted in epoch {training.epoch + 1} of {num_epochs}", file=sys.stderr)
    finally:
        model.train(was_training)
    if training.best:
        model.load_state_dict(training.best)
    return history


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the process keep memory that a step on the CPU frees until the next one needs it.

    Given back to the system it would have to be mapped in again, page by page, in every step: a
    quarter of the time of a small one. Needs the extension, and glibc.
    """
    if _extension.native is None:
        yield
        return
    _extension.native.keep_freed_memory(True)
    try:
        yield
    finally:
        _extension.native.keep_freed_memory(False)


def is_out_of_patience(history: History, patience: int) -> bool:
    """Whether the last `patience` validations were no better than the best before them; never for 0."""
    ndcgs = history["val_ndcg"]
    return 0 < patience < len(ndcgs) and max(ndcgs[-patience:]) <= max(ndcgs[:-patience])


class _Training:
    """A model and its optimizer on their way, and all that a checkpoint of them holds."""

    def __init__(
        self,
        model: SASREC,
        sampler: Sampler,
        learning_rate: float,
        options: TrainingOptions,
        schedule: Callable[[int], float],
    ) -> None:
        self.model, self.sampler, self.options = model, sampler, options
        self.optimizer = _adam(model, learning_rate, options.adam_betas)
        self.history: History = {"loss": [], "seconds": [], "val_ndcg": [], "val_hr": []}
        self.epoch = 0
        self.best: dict[str, Tensor] = {}
        self._learning_rate, self._schedule, self._num_steps = learning_rate, schedule, 0
        if model.device.type == "cuda":  # a captured step reads it from there
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(learning_rate, device=model.device)
        loss = _loss(model, sampler, options)
        num_processes = distributed.size()
        if num_processes > 1:
            loss = distributed.data_parallel(model, loss)
        work = training_work(self.optimizer, loss, options.max_grad_norm)
        self._step = training_step(
            work, self.optimizer, model.device, model.seq_max_len, num_processes
        )
        self._to_compare = num_processes > 1

    def take_step(self, batch: PackedBatch) -> Tensor:
        """Loss, gradients, update, on a batch on the CPU; never waits for the device.

        Of a batch that several processes share, a process computes a part, and the average of their losses
        is that of the batch.
        """
        learning_rate = self._learning_rate * self._schedule(self._num_steps)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        self._num_steps += 1
        if distributed.size() > 1:
            if self._to_compare:
                distributed.check_same_batch(batch)
                self._to_compare = False
            batch = distributed.shard(batch, distributed.rank(), distributed.size())
        with distributed.telling_of_lost_processes():
            return self._step(batch)

    def note_validation(self, ndcg: float, hr: float) -> None:
        """Enter what was measured after this epoch, and keep the model if it is the best so far."""
        is_best = ndcg > max(self.history["val_ndcg"], default=-math.inf)
        self.history["val_ndcg"].append(ndcg)
        self.history["val_hr"].append(hr)
        if is_best and self.options.restore_best:
            self.best = {name: x.clone() for name, x in self.model.state_dict().items()}

    def state(self, settings: dict[str, Any]) -> TrainingState:
        """Everything, between two epochs."""
        assert isinstance(self.sampler, SeekableSampler)
        moments = self.optimizer.state_dict()["state"]
        return TrainingState(
            settings=settings,
            epoch=self.epoch,
            next_batch=self.sampler.tell(),
            history=self.history,
            rng=torch.get_rng_state(),
            model=self.model.state_dict(),
            optimizer={f"{i}.{name}": x for i, xs in moments.items() for name, x in xs.items()},
            best=self.best,
        )

    def resume(
        self, folder: str | os.PathLike[str], settings: dict[str, Any], num_steps: int
    ) -> None:
        """Take up the training whose state is in `folder`, if there is one, if it has these settings."""
        assert isinstance(self.sampler, SeekableSampler)
        state = load_training(folder)
        if state is None:
            return
        for name, value in settings.items():
            if state.settings.get(name) != value:
                raise ValueError(
                    f"checkpoint {folder} is of a training with {name} = "
                    f"{state.settings.get(name)!r}, got {value!r}"
                )
        self.model.load_state_dict(state.model)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.optimizer.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.sampler.seek(state.next_batch)
        torch.set_rng_state(state.rng)
        self.history, self.best = state.history, state.best
        self.epoch, self._num_steps = state.epoch, state.epoch * num_steps


def _settings(
    model: SASREC,
    sampler: SeekableSampler,
    learning_rate: float,
    val_epoch: int,
    options: TrainingOptions,
    num_steps: int,
) -> dict[str, Any]:
    """What a training must have in common with the one that it goes on with, as JSON has it."""
    settings = {
        "model": type(model).__name__,
        **asdict(model.config),
        **asdict(options),
        "learning_rate": learning_rate,
        "val_epoch": val_epoch,
        "steps of an epoch": num_steps,
        **{f"{name} of the sampler": value for name, value in sampler.settings.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _loss(model: SASREC, sampler: Sampler, options: TrainingOptions) -> Loss:
    """The loss of a batch, by what the options and the sampler say."""
    log_probs = None
    if options.loss == "sampled_softmax":
        drawn = getattr(sampler, "negative_log_probs", None)
        if drawn is not None:
            log_probs = torch.from_numpy(drawn).float().to(model.device)

    def loss(batch: PackedBatch, seed: Tensor) -> Tensor:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=options.bf16):
            return model.training_loss(
                batch,
                loss=options.loss,
                gbce_t=options.gbce_t,
                negative_log_probs=log_probs,
                seed=seed,
            )

    return loss


def _train_epoch(
    training: _Training,
    next_batch: Callable[[], PackedBatch],
    num_steps: int,
    epoch: int,
    bar: tqdm,
) -> float:
    """Take `num_steps` steps; the mean loss.

    The losses stay on the device and are looked at only when the bar is due, because every look
    makes the host wait for the device. All processes look after the same steps.
    """
    losses = torch.zeros(num_steps, dtype=torch.float64, device=training.model.device)
    num_samples = seen = due = 0
    start = time.monotonic()
    for step in range(num_steps):
        batch = next_batch()
        losses[step] = training.take_step(batch)
        num_samples += len(batch.users)
        if step == due or step == num_steps - 1:
            losses[seen : step + 1] = distributed.average(losses[seen : step + 1])
            seen = step + 1
            mean = _finite_mean(losses[:seen], epoch)
            seconds = distributed.from_first(lambda: time.monotonic() - start)
            due = step + max(1, int(_REFRESH_SECONDS * seen / seconds))
            bar.set_postfix_str(
                f"loss {mean:.4f}, {num_samples / seconds:,.0f} samples/s", refresh=False
            )
            bar.update(seen - bar.n)
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


def _adam(model: SASREC, learning_rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
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
        betas=betas,
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
