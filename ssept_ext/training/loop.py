"""The training loop behind `SSEPT.train_model`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ssept_ext import distributed, ops
from ssept_ext.data.packed import PackedBatch, align, pack
from ssept_ext.evaluation.candidates import (
    EvaluationCandidates,
    check_dataset_fits,
    draw_candidates,
)
from ssept_ext.evaluation.sampled import rank_candidates
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.sampling.protocols import PackingSampler, Sampler
from ssept_ext.training import data_parallel
from ssept_ext.training.callbacks import Callback
from ssept_ext.training.display import Display
from ssept_ext.training.environment import kept_memory, matmul_precision
from ssept_ext.training.interruption import StopRequest, TrainingInterrupted
from ssept_ext.training.options import LoopOptions, TrainingOptions, check_together
from ssept_ext.training.run import History, Run

if TYPE_CHECKING:
    from ssept_ext.data.dataset import SASRecDataSet

VALIDATION_SEED = 0
_REFRESH_SECONDS = 0.5


def train_model(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    sampler: Sampler,
    num_epochs: int = LoopOptions.num_epochs,
    batch_size: int = LoopOptions.batch_size,
    learning_rate: float = LoopOptions.learning_rate,
    val_epoch: int = LoopOptions.val_epoch,
    eval_batch_size: int = LoopOptions.eval_batch_size,
    verbose: bool = True,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> History:
    """Train by Adam on the sampler's batches.

    As in recommenders, an epoch is `len(dataset.user_train) // batch_size` steps, at least one, and
    the size of a batch is the sampler's own. `model.l2_reg` weighs `0.5 * ||table||**2` of the
    embedding tables only, as in the TensorFlow original (recommenders' torch port decays every
    weight); it acts through the gradient, so the loss in the history is that of the data alone.

    If `torch.distributed` is initialised, its processes train together, by DistributedDataParallel: call this in
    all of them, with the same arguments. The sampler's batch is then the global one, of which each process takes
    consecutive sequences. A step equals that of a single process except for the dropout masks, for which every
    process has a seed of its own. Validation is shared, too. Process 0 writes checkpoints and shows the
    progress; any number of processes may resume a training. On a GPU, steps are then eager.

    Ctrl-C ends training and returns the epochs finished so far; with `checkpoint`, see there. However
    training ends, the model is left in the mode (train or eval) it was in, without gradients. Dropout and SSE
    draw from torch's global generator: `torch.manual_seed` makes them reproducible.

    Parameters
    ----------
    model : `SASREC` or `SSEPT`, on any device
    dataset : gives the number of steps, and the users and items of validation
    sampler : any sampler with recommenders' `next_batch` will do
    num_epochs : at least 1
    batch_size : at least 1, and the number of processes; divides the number of users into steps
    learning_rate : positive
    val_epoch : validate after every so many epochs, on the same candidates each time; 0 for never
    eval_batch_size : users that validation encodes at a time, at least 1
    verbose : show loss, samples (sequences) per second and validation on stderr: a progress bar on a terminal,
        elsewhere a line for every tenth epoch
    checkpoint : folder that keeps the state of the training, saved after each epoch. If it holds one already, the
        training resumes from it, including the state of the sampler and of torch's generator: killed at any
        time and called again with the same arguments, it ends as if it had never been interrupted, on a
        CPU bit for bit. A finished training returns at once or, with a constant schedule and a larger
        `num_epochs`, continues. SIGTERM and Ctrl-C finish the running step (or validation; with several
        processes, a few steps, until all have heard of it), save, and raise `TrainingInterrupted`; a second Ctrl-C
        ends at once. Needs a sampler with `seek` and `tell`.
    callbacks : called in every process, in order, after each epoch, see `ssept_ext.training.callbacks`; any that
        returns True ends the training
    options : fields of `TrainingOptions`, such as `loss`

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
    ssept_ext.training.TrainingInterrupted
        If SIGTERM or SIGINT came in a training with `checkpoint`; a SystemExit with the code 143 or 130.
    ProcessLostError
        If another process ends, or does not answer within the timeout of the process group.
    FloatingPointError
        If the loss of a step is not finite; names the first such step. The parameters are then of
        no use.
    """
    loop = LoopOptions(
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        val_epoch=val_epoch,
        eval_batch_size=eval_batch_size,
    )
    training_options = TrainingOptions(**options)
    num_steps = max(1, len(dataset.user_train) // loop.batch_size)
    _check(model, dataset, loop, training_options, num_steps, callbacks)
    candidates = _validation_candidates(model, dataset) if loop.val_epoch else None
    next_batch = _batch_source(sampler, model.seq_max_len)
    run = Run(model, sampler, loop, training_options, num_steps)
    if checkpoint is not None:
        run.resume(checkpoint)
        distributed.check_same(**{"epochs done by checkpoint": run.epoch})
    is_first = distributed.rank() == 0
    display = Display(loop.num_epochs, num_steps, enabled=verbose and is_first)
    stop = StopRequest(listen=checkpoint is not None)
    with stop, kept_memory(model.device), run.in_training_mode():
        try:
            while not stop and not run.is_over():
                epoch = run.epoch + 1
                distributed.share_generator()
                with display.epoch(epoch, len(run.losses)):
                    with matmul_precision(training_options.precision):
                        _run_epoch(run, next_batch, display, stop)
                    if not stop:
                        run.end_epoch()
                        if candidates is not None and epoch % loop.val_epoch == 0:
                            ndcg, hr = rank_candidates(model, candidates, loop.eval_batch_size)
                            run.note_validation(ndcg, hr)
                            display.validated(ndcg, hr)
                if run.epoch == epoch:
                    display.epoch_is_over(epoch)
                    run.call(callbacks)
                if checkpoint is not None and is_first:
                    run.save(checkpoint)
                stop.share(distributed.gather(stop.noted))
        except KeyboardInterrupt:
            if checkpoint is not None:
                raise
            display.say(f"interrupted in epoch {run.epoch + 1} of {loop.num_epochs}")
    if run.best:
        model.load_state_dict(run.best)
    if stop:
        message = f"{stop.first.name} after {run.where()}: the training is saved in {checkpoint}"
        display.say(f"{message}, and the same call resumes it")
        raise TrainingInterrupted(message, stop.first)
    return run.history


def _check(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    loop: LoopOptions,
    options: TrainingOptions,
    num_steps: int,
    callbacks: Sequence[Callback],
) -> None:
    """Refuse arguments of `train_model` that do not fit together, or differ between processes."""
    data_parallel.check_batch_size(loop.batch_size, distributed.size())
    check_together(loop, options)
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions, got {callback!r}")
    check_dataset_fits(model, dataset)
    trials = None
    if val_epoch:
        trials = draw_candidates(
            dataset, "valid", num_neg_test=model.num_neg_test, seed=VALIDATION_SEED
        )

    num_steps = max(1, dataset.num_users // batch_size)
    next_batch = _batch_source(sampler, model.seq_max_len)
    schedule = partial(opts.learning_rate_factor, num_steps=num_steps * num_epochs)
    distributed.check_same(
        num_epochs=num_epochs,
        num_steps=num_steps,
        learning_rate=learning_rate,
        val_epoch=val_epoch,
        eval_batch_size=eval_batch_size,
        options=opts,
    )
    training = _Training(model, sampler, learning_rate, opts, schedule)
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        if not isinstance(sampler, SeekableSampler):
            raise ValueError(
                f"checkpoint needs a sampler with seek and tell, such as WarpSampler, "
                f"got {type(sampler).__name__}"
            )
        settings = _settings(model, sampler, learning_rate, val_epoch, opts, num_steps)
        if opts.schedule != "constant":
            settings["num_epochs"] = num_epochs
        training.resume(checkpoint, settings, num_steps)
        distributed.check_same(**{"epochs done by checkpoint": training.epoch})
    history = training.history
    was_training = model.training
    model.train()
    is_first = distributed.rank() == 0
    listening: AbstractContextManager[list[signal.Signals]]
    listening = nullcontext([]) if checkpoint is None else noted_signals()
    with listening as noted:
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
                    with kept_memory():
                        signals = _train_epoch(training, next_batch, num_steps, epoch, bar, noted)
                    if not signals:
                        training.end_epoch()
                        if trials is not None and epoch % val_epoch == 0:
                            ndcg, hr = rank_candidates(model, trials, eval_batch_size)
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


def _validation_candidates(
    model: SequentialRecommender, dataset: SASRecDataSet
) -> EvaluationCandidates:
    return draw_candidates(dataset, "valid", num_neg_test=model.num_neg_test, seed=VALIDATION_SEED)


def _run_epoch(
    run: Run, next_batch: Callable[[], PackedBatch], display: Display, stop: StopRequest
) -> None:
    """Take the steps that are left of the current epoch, or as many as until `stop` asks to stop.

    The losses stay on the device and are only read when the display is due, because reading makes the host
    wait for the device. All processes read after the same steps, and then exchange the signals they received.
    """
    num_steps, device = run.num_steps, run.model.device
    first = seen = done = len(run.losses)
    losses = torch.zeros(num_steps, dtype=torch.float64, device=device)
    losses[:done] = run.losses
    num_samples, due = 0, done + 1
    start = time.monotonic()

    def read_losses() -> Tensor:
        nonlocal seen, due
        losses[seen:done] = distributed.average(losses[seen:done])
        seen = done
        values = _finite(losses[:done], run.epoch + 1)
        everywhere = distributed.gather((max(time.monotonic() - start, 1e-9), stop.noted))
        stop.share([noted for _, noted in everywhere])
        seconds = everywhere[0][0]
        due = done + max(1, int(_REFRESH_SECONDS * (done - first) / seconds))
        display.update(done, values.mean().item(), num_samples / seconds)
        return values

    while done < num_steps and not stop:
        batch = next_batch()
        losses[done] = run.take_step(batch)
        done += 1
        num_samples += len(batch.users)
        if done == due and done < num_steps:
            read_losses()
    run.losses = read_losses()
    run.seconds += time.monotonic() - start


def _finite(losses: Tensor, epoch: int) -> Tensor:
    """The losses on the CPU, once the device has computed them; a FloatingPointError if one is not finite."""
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


def _batch_source(sampler: Sampler, seq_max_len: int) -> Callable[[], PackedBatch]:
    """The cheapest way to packed batches from this sampler."""
    if isinstance(sampler, PackingSampler):
        return lambda: align(sampler.next_packed(), sampler.maxlen, seq_max_len)

    def next_batch() -> PackedBatch:
        users, seq, pos, neg = _checked_batch(sampler.next_batch())
        return align(pack(users, seq, pos, neg), seq.shape[1], seq_max_len)

    return next_batch


def _checked_batch(batch: Iterable[ArrayLike]) -> list[Tensor]:
    """What `next_batch` of any sampler returned, as int64 tensors."""
    tensors = []
    names = (("users", 1), ("input_seq", 2), ("positive", 2), ("negative", 2))
    for (name, ndim), ids in zip(names, batch, strict=True):
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
