"""The training loop behind `SSEPT.train_model`."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import InitVar, asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ssept_ext import _extension, distributed, ops
from ssept_ext.callbacks import Callback, EpochFigures, Progress
from ssept_ext.checkpoint import TrainingState, load_training, save_training
from ssept_ext.evaluation import check_at_least, check_dataset_fits, draw_trials, measure
from ssept_ext.graphs import Loss, training_step, training_work
from ssept_ext.interruption import TrainingInterrupted, noted_signals
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


@runtime_checkable
class LengthKnowingSampler(Protocol):
    """What lets a CUDA graph be made for the data instead of the first batch; `WarpSampler` has it."""

    def sequence_lengths(self) -> NDArray[np.int64]:
        """Of the sequences that are drawn independently, each as often."""


Precision = Literal["float32", "tf32", "bf16"]


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
    precision: Precision | None = None
    """Of matrix products and attention in training steps; parameters, logits and sums are float32 throughout.
    None is "float32": exact, unless torch itself has been told to use TF32. "tf32" rounds their inputs to 10 bits on a
    GPU, for its tensor cores; on a CPU it is "float32". "bf16" computes hidden states in bfloat16 by autocast, see
    `ssept_ext.ops`. Validation is as precise as `evaluate`: float32, unless torch itself has been told to use TF32."""
    bf16: InitVar[bool | None] = None
    """True is an older spelling of precision="bf16"."""
    patience: int = 0
    """End after this many validations in a row without a better NDCG@10; 0 for never."""
    restore_best: bool = False
    """Leave the model as it was when a validation had the best NDCG@10."""

    def __post_init__(self, bf16: bool | None) -> None:
        if self.precision is None:
            object.__setattr__(self, "precision", "bf16" if bf16 else "float32")
        elif bf16 is not None and bf16 != (self.precision == "bf16"):
            raise ValueError(
                f'bf16={bf16} contradicts precision="{self.precision}": leave bf16 out'
            )
        for name, known in (("loss", LossName), ("schedule", Schedule), ("precision", Precision)):
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
    callbacks: Sequence[Callback] = (),
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

    Ctrl-C ends training and returns the epochs finished so far; with `checkpoint`, see there. However
    training ends, the model is left in the mode (train or eval) it was in, without gradients. Dropout and SSE draw from
    torch's global generator: `torch.manual_seed` makes them reproducible.

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
        `num_epochs` larger than before, goes on. SIGTERM and Ctrl-C finish the running step (or validation; with
        several processes, a few steps, until all have heard of it), save, and raise `TrainingInterrupted`; a
        second Ctrl-C ends at once. Needs a sampler with `seek` and `tell`.
    callbacks : called in every process, one after another after each epoch, see `ssept_ext.callbacks`; any that
        returns True ends the training

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
    TypeError
        If one of `callbacks` cannot be called.
    ssept_ext.interruption.TrainingInterrupted
        If SIGTERM or SIGINT came in a training with `checkpoint`; a SystemExit with the code 143 or 130.
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
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions, got {callback!r}")
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
    is_first = distributed.rank() == 0
    listening: AbstractContextManager[list[signal.Signals]]
    listening = nullcontext([]) if checkpoint is None else noted_signals()
    with listening as noted, kept_memory(model.device):
        signals: list[signal.Signals] = []
        try:
            while not signals and training.epoch < num_epochs and not training.is_ended():
                epoch = training.epoch + 1
                distributed.share_generator()
                with tqdm(
                    total=num_steps,
                    initial=len(training.losses),
                    desc=f"epoch {epoch}/{num_epochs}",
                    unit="step",
                    disable=not (verbose and is_first),
                ) as bar:
                    with matmul_precision(options.precision):
                        signals = _train_epoch(training, next_batch, num_steps, epoch, bar, noted)
                    if not signals:
                        training.end_epoch()
                        if trials is not None and epoch % val_epoch == 0:
                            ndcg, hr = measure(model, trials, eval_batch_size)
                            training.note_validation(ndcg, hr)
                            figures = f"valid NDCG@10 {ndcg:.4f}, HR@10 {hr:.4f}"
                            bar.set_postfix_str(f"{bar.postfix}, {figures}")
                if callbacks and training.epoch == epoch:
                    progress = Progress(model, _figures(history, num_steps, val_epoch))
                    wishes = [callback(progress) for callback in callbacks]
                    training.ended = any(distributed.gather(any(wishes)))
                if checkpoint is not None and is_first:
                    save_training(training.state(settings), checkpoint)
                signals = signals or _first_signals(distributed.gather(noted))
        except KeyboardInterrupt:
            if checkpoint is not None:
                raise
            if verbose and is_first:
                print(f"interrupted in epoch {training.epoch + 1} of {num_epochs}", file=sys.stderr)
        finally:
            model.train(was_training)
            training.optimizer.zero_grad()  # the gradients may keep all the memory of a CUDA graph
    if training.best:
        model.load_state_dict(training.best)
    if signals:
        done = f"epoch {training.epoch} of {num_epochs}"
        if len(training.losses):
            step = f"step {len(training.losses)} of {num_steps}"
            done = f"{step} of epoch {training.epoch + 1} of {num_epochs}"
        message = f"{signals[0].name} after {done}: the training is saved in {checkpoint}"
        if verbose and is_first:
            print(f"{message}, and the same call goes on", file=sys.stderr)
        raise TrainingInterrupted(message, signals[0])
    return history


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Let the process keep memory that a step on the CPU frees until the next one needs it.

    Given back to the system it would have to be mapped in again, page by page, in every step: a quarter of the time
    of a small one. A training enters it once, as leaving it gives everything back. Needs the extension, and glibc.
    """
    if _extension.native is None or device.type != "cpu":
        yield
        return
    _extension.native.keep_freed_memory(True)
    try:
        yield
    finally:
        _extension.native.keep_freed_memory(False)


@contextmanager
def matmul_precision(precision: Precision | None) -> Iterator[None]:
    """Let GPUs compute products of float32, torch's and ours, in TF32 where `precision` is "tf32"."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if precision != "tf32" or before == "tf32":
        yield
        return
    # As torch.set_float32_matmul_precision("high") does, which has CPUs round as well.
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before  # "none" may have become "ieee"


def _figures(history: History, num_steps: int, val_epoch: int) -> list[EpochFigures]:
    """The history by epochs, of `num_steps` steps each."""
    epochs = []
    validations = zip(history["val_ndcg"], history["val_hr"], strict=True)
    for i, (seconds, loss) in enumerate(zip(history["seconds"], history["loss"], strict=True), 1):
        validated = val_epoch and i % val_epoch == 0
        ndcg, hr = next(validations) if validated else (None, None)
        epochs.append(EpochFigures(i, i * num_steps, round(seconds, 3), loss, ndcg, hr))
    return epochs


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
        self.ended = False
        """Whether a callback said so."""
        self.losses = torch.zeros(0, dtype=torch.float64)
        """Of the steps that are done of the epoch in progress."""
        self.seconds = 0.0
        """Spent on them."""
        self.best: dict[str, Tensor] = {}
        self._learning_rate, self._schedule, self._num_steps = learning_rate, schedule, 0
        self._current_rate = learning_rate
        if model.device.type == "cuda":  # a captured step reads it from there
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(learning_rate, device=model.device)
        loss = _loss(model, sampler, options)
        num_processes = distributed.size()
        if num_processes > 1:
            loss = distributed.data_parallel(model, loss)
        work = training_work(self.optimizer, loss, options.max_grad_norm)
        self._step = training_step(
            work,
            self.optimizer,
            model.device,
            model.seq_max_len,
            num_processes,
            sampler.sequence_lengths() if isinstance(sampler, LengthKnowingSampler) else None,
        )
        self._to_compare = num_processes > 1

    def take_step(self, batch: PackedBatch) -> Tensor:
        """Loss, gradients, update, on a batch on the CPU; never waits for the device.

        Of a batch that several processes share, a process computes a part, and the average of their losses
        is that of the batch.
        """
        learning_rate = self._learning_rate * self._schedule(self._num_steps)
        if learning_rate != self._current_rate:
            self._current_rate = learning_rate
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

    def end_epoch(self) -> None:
        """Enter the figures of the epoch in progress, whose steps are all done."""
        self.history["loss"].append(self.losses.mean().item())
        self.history["seconds"].append(sum(self.history["seconds"][-1:]) + self.seconds)
        self.epoch += 1
        self.losses, self.seconds = self.losses[:0], 0.0

    def note_validation(self, ndcg: float, hr: float) -> None:
        """Enter what was measured after this epoch, and keep the model if it is the best so far."""
        is_best = ndcg > max(self.history["val_ndcg"], default=-math.inf)
        self.history["val_ndcg"].append(ndcg)
        self.history["val_hr"].append(hr)
        if is_best and self.options.restore_best:
            self.best = {name: x.clone() for name, x in self.model.state_dict().items()}

    def is_ended(self) -> bool:
        """Whether a callback has ended the training, or the last `patience` validations were no better than before."""
        ndcgs, patience = self.history["val_ndcg"], self.options.patience
        return self.ended or (
            0 < patience < len(ndcgs) and max(ndcgs[-patience:]) <= max(ndcgs[:-patience])
        )

    def state(self, settings: dict[str, Any]) -> TrainingState:
        """Everything, between two steps."""
        assert isinstance(self.sampler, SeekableSampler)
        moments = self.optimizer.state_dict()["state"]
        return TrainingState(
            settings=settings,
            epoch=self.epoch,
            ended=self.ended,
            seconds=self.seconds,
            next_batch=self.sampler.tell(),
            history=self.history,
            rng=torch.get_rng_state(),
            losses=self.losses,
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
        # Before there was `precision`, "bf16" said it.
        state.settings.setdefault(
            "precision", TrainingOptions(bf16=state.settings.get("bf16")).precision
        )
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
        self.epoch, self.ended = state.epoch, state.ended
        self.losses, self.seconds = state.losses, state.seconds
        self._num_steps = state.epoch * num_steps + len(state.losses)


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
        with torch.autocast(
            model.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"
        ):
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
    noted: list[signal.Signals],
) -> list[signal.Signals]:
    """Take those of the `num_steps` steps of an epoch that are left, or as many as until signals are `noted`.

    Returns these signals. The losses stay on the device and are looked at only when the bar is due, because every look
    makes the host wait for the device. All processes look after the same steps, and hear of each other's
    signals then.
    """
    first = seen = done = len(training.losses)
    losses = torch.zeros(num_steps, dtype=torch.float64, device=training.model.device)
    losses[:done] = training.losses
    signals = noted if distributed.size() == 1 else []  # one process hears of its own at once
    num_samples, due = 0, done + 1
    start = time.monotonic()

    def look() -> Tensor:
        nonlocal seen, due, signals
        losses[seen:done] = distributed.average(losses[seen:done])
        seen = done
        values = _finite(losses[:done], epoch)
        everywhere = distributed.gather((max(time.monotonic() - start, 1e-9), noted))
        seconds = everywhere[0][0]
        if len(everywhere) > 1:
            signals = _first_signals([theirs for _, theirs in everywhere])
        due = done + max(1, int(_REFRESH_SECONDS * (done - first) / seconds))
        rate = num_samples / seconds
        bar.set_postfix_str(f"loss {values.mean():.4f}, {rate:,.0f} samples/s", refresh=False)
        bar.update(done - bar.n)
        return values

    while done < num_steps and not signals:
        batch = next_batch()
        losses[done] = training.take_step(batch)
        done += 1
        num_samples += len(batch.users)
        if done == due and done < num_steps:
            look()
    training.losses = look()
    training.seconds += time.monotonic() - start
    return signals


def _first_signals(of_processes: list[list[signal.Signals]]) -> list[signal.Signals]:
    """Those of the first process that has any."""
    return next((signals for signals in of_processes if signals), [])


def _finite(losses: Tensor, epoch: int) -> Tensor:
    """The losses on the CPU, when the device has computed them; refuses such as are not finite."""
    values = losses.cpu()
    ops.raise_pending_errors()
    finite = values.isfinite()
    if not finite.all():
        step = int(finite.logical_not().nonzero()[0])
        raise FloatingPointError(
            f"the loss is {values[step].item()} at step {step + 1} of epoch {epoch}: a smaller "
            f"learning_rate may help, or the parameters were not finite to begin with"
        )
    return values


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
