"""The training loop behind `SSEPT.train_model`.

**Several processes.** If `torch.distributed` is initialised, its processes train together, by
DistributedDataParallel: call `train_model` in all of them, with the same arguments. The sampler's batch is then the
global one, of which each process takes consecutive sequences. A step equals that of a single process except for
the dropout masks, for which every process has a seed of its own. Validation is shared, too. Process 0 writes
checkpoints and shows the progress; any number of processes may resume a training. On a GPU, steps are then eager.

**Checkpoints.** With `checkpoint`, the state of the training is saved there after each epoch, including that of the
sampler and of the generator. Killed at any time and called again with the same arguments, a training ends
as if it had never been interrupted, on a CPU bit for bit. A finished training returns at once or, with a constant
schedule and a larger `num_epochs`, continues. SIGTERM and Ctrl-C finish the running step (or validation; with several
processes, a few steps, until all have heard of it), save, and raise `TrainingInterrupted`; a second Ctrl-C ends it.

Examples
--------
>>> from ssept_ext import SASREC, WarpSampler
>>> from ssept_ext.data.synthetic import synthetic
>>> data = synthetic(num_users=20)
>>> model = SASREC(item_num=data.itemnum, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
>>> with WarpSampler(data.user_train, data.usernum, data.itemnum, batch_size=10, maxlen=4) as sampler:
...     history = model.train_model(data, sampler, num_epochs=2, batch_size=10, verbose=False)
>>> len(history["loss"])
2
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ssept_ext import distributed, ops
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.packed import PackedBatch, align, pack
from ssept_ext.evaluation.candidates import draw_candidates, measurable_users
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.metrics import CUTOFF
from ssept_ext.evaluation.sampled import rank_candidates
from ssept_ext.network.identity import check_ids_of, check_is_dataset
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.sampling.protocols import DigestingSampler, PackingSampler, Sampler, SeekableSampler
from ssept_ext.training import data_parallel
from ssept_ext.training.callbacks import Callback
from ssept_ext.training.display import Display
from ssept_ext.training.environment import kept_memory, matmul_precision
from ssept_ext.training.interruption import StopRequest, TrainingInterrupted
from ssept_ext.training.options import LoopOptions, TrainingOptions, check_together
from ssept_ext.training.run import History, Run
from ssept_ext.training.step import draw_seeds
from ssept_ext.utils.checks import shown

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
    """Train by Adam on the sampler's batches. See the module for several processes and for checkpoints.

    As in recommenders, an epoch is `len(dataset.user_train) // batch_size` steps, at least one, and the size of a batch
    is the sampler's own. `model.l2_reg` weighs `0.5 * ||table||**2` of the embedding tables only, as in the TensorFlow
    original (recommenders' torch port decays every weight); the loss in the history is that of the data alone.

    The model is left in its mode (train or eval), without gradients. Dropout, and SSE if the sampler does not apply it,
    draw from a copy of torch's global generator, which then moves on as far: `torch.manual_seed` makes them
    reproducible, whatever other threads draw. As in recommenders, Ctrl-C without a `checkpoint` ends training and
    returns the finished epochs, with a warning.

    Parameters
    ----------
    model
        `SASREC` or `SSEPT`, on any device.
    dataset
        The data set that the sampler draws from: it gives the number of steps, and the users and items of validation.
    sampler
        `WarpSampler`, or any sampler with recommenders' `next_batch`; `checkpoint` also needs `seek` and `tell`.
    num_epochs, batch_size, learning_rate, val_epoch, eval_batch_size
        See `ssept_ext.training.options.LoopOptions`.
    verbose
        Whether to show loss, samples/s and validation on stderr: a bar on a terminal, elsewhere a line per ten epochs.
    checkpoint
        Folder where the state of the training is saved, and from which it resumes if there is one.
    callbacks
        Functions that every process calls after each epoch, see `ssept_ext.training.callbacks`; True ends training.
    options
        Fields of `ssept_ext.training.TrainingOptions`, such as `loss`.

    Returns
    -------
    dict
        Per epoch, the mean "loss" and the "seconds" trained by its end; per validation, "val_ndcg" and "val_hr".

    Raises
    ------
    ValueError
        If an argument is out of range or differs between processes (names it), the model has no vectors for some ids of
        the data set, there is no user to validate on, or `checkpoint` is damaged or belongs to another training.
    TypeError
        If `dataset`, `sampler` or `callbacks` are something else.
    ssept_ext.training.TrainingInterrupted
        If SIGTERM or SIGINT arrives and `checkpoint` is given; a SystemExit with the code 143 or 130.
    ProcessLostError
        If another process ends, or does not answer within the timeout of the process group.
    FloatingPointError
        If the loss of a step is not finite; names the first such step. The parameters are then unusable.
    """
    loop = LoopOptions(
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        val_epoch=val_epoch,
        eval_batch_size=eval_batch_size,
    )
    run = start_run(model, dataset, sampler, loop, TrainingOptions(**options), callbacks)
    try:
        train_run(run, dataset, verbose, checkpoint, callbacks)
    except KeyboardInterrupt:
        if checkpoint is not None:
            raise
        _end_early(run)
    finally:
        draw_seeds(run.steps_done)
    return run.history


def _end_early(run: Run) -> None:
    """Leave the model as of the epochs finished so far, with a warning at the call of `train_model`."""
    run.restore_best()
    warnings.warn(
        f"interrupted in epoch {run.epoch + 1} of {run.loop.num_epochs}: the model is not trained to the end",
        stacklevel=3,
    )


def start_run(
    model: SequentialRecommender,
    dataset: SASRecDataSet,
    sampler: Sampler,
    loop: LoopOptions,
    options: TrainingOptions,
    callbacks: Sequence[Callback],
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
) -> Run:
    """Check the arguments of `train_model` together, also with those of other processes, and start a run.

    Parameters
    ----------
    generator
        Where the seeds of dropout and SSE come from, on the CPU; None for a copy of torch's global generator.
    num_steps
        Steps of an epoch; None for a pass over the users of the data set.
    """
    if generator is None:
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
    data_parallel.check_batch_size(loop.batch_size, distributed.size())
    check_together(loop, options)
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks must be a sequence of functions, got {shown(callbacks)}")
    if not hasattr(sampler, "next_batch"):
        raise TypeError(f"sampler must have a method next_batch, got {shown(sampler)}")
    check_is_dataset(dataset)
    if num_steps is None:
        num_steps = max(1, dataset.num_users // loop.batch_size)
    data = Fingerprint.of(dataset)
    if distributed.size() > 1:
        drawing = sampler.settings if isinstance(sampler, SeekableSampler) else {}
        distributed.check_same(
            model=type(model).__name__,
            **vars(model.config),
            **vars(loop),
            **vars(options),
            data=data,
            **{f"{name} of the sampler": x for name, x in drawing.items() if name != "seed"},
            **{
                "histories of the sampler": isinstance(sampler, DigestingSampler)
                and sampler.digest()
            },
        )
    check_ids_of(model, dataset)
    model.trained_on = data
    return Run(model, sampler, loop, options, num_steps, generator)


def train_run(
    run: Run,
    dataset: SASRecDataSet,
    verbose: bool,
    checkpoint: str | os.PathLike[str] | None,
    callbacks: Sequence[Callback],
) -> None:
    """Train until the run is over, as `train_model` does, but let a KeyboardInterrupt pass."""
    model, loop = run.model, run.loop
    validate = _validation(run, dataset) if loop.val_epoch else None
    next_batch = _batch_source(run.sampler, model.seq_max_len)
    if checkpoint is not None:
        run.resume(checkpoint)
        distributed.check_same(**{"epochs done by checkpoint": run.epoch})
    display = Display(loop.num_epochs, run.num_steps, verbose and distributed.rank() == 0)
    stop = StopRequest(listen=checkpoint is not None)
    with stop, kept_memory(model.device), run.in_training_mode(), run.drawing():
        while not stop and not run.is_over():
            epoch = run.epoch + 1
            distributed.share_generator(run.generator)
            with display.epoch(epoch, len(run.losses)):
                with matmul_precision(run.options.precision):
                    _run_epoch(run, next_batch, display, stop)
                if not stop:
                    run.end_epoch()
                    if validate is not None and epoch % loop.val_epoch == 0:
                        ndcg, hr = validate()
                        run.note_validation(ndcg, hr)
                        display.validated(ndcg, hr, run.options.validation)
            if run.epoch == epoch:
                display.epoch_is_over(epoch)
                run.call(callbacks)
            if checkpoint is not None:
                run.save(checkpoint)
            stop.share(distributed.gather(stop.noted))
    run.restore_best()
    if stop:
        message = f"{stop.first.name} after {run.where()}: the training is saved in {checkpoint}"
        display.say(f"{message}, and the same call resumes it")
        raise TrainingInterrupted(message, stop.first)


def _validation(run: Run, dataset: SASRecDataSet) -> Callable[[], tuple[float, float]]:
    """Return a function that validates the model: (NDCG@10, HR@10)."""
    model, batch_size = run.model, run.loop.eval_batch_size
    if run.options.validation == "sampled":
        num_neg_test, seed = model.num_neg_test, VALIDATION_SEED
        candidates = draw_candidates(dataset, "valid", num_neg_test=num_neg_test, seed=seed)
        return lambda: rank_candidates(model, candidates, batch_size)
    measurable_users(dataset, "valid")  # raises an error before training if there are none

    def rank_all() -> tuple[float, float]:
        full = evaluate_full(model, dataset, (CUTOFF,), split="valid", eval_batch_size=batch_size)
        return full.ndcg[CUTOFF], full.hr[CUTOFF]

    return rank_all


def _run_epoch(
    run: Run, next_batch: Callable[[], PackedBatch], display: Display, stop: StopRequest
) -> None:
    """Take the remaining steps of the current epoch, until `stop` asks to stop.

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
    """Wait for the losses and return them on the CPU; a FloatingPointError if one is not finite."""
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
    """Return a function that draws packed batches, without making padded ones if the sampler can."""
    if isinstance(sampler, PackingSampler):
        return lambda: align(sampler.next_packed(), sampler.maxlen, seq_max_len)

    def next_batch() -> PackedBatch:
        users, seq, pos, neg = _checked_batch(sampler.next_batch())
        return align(pack(users, seq, pos, neg), seq.shape[1], seq_max_len)

    return next_batch


def _checked_batch(batch: Iterable[ArrayLike]) -> list[Tensor]:
    """Check what a sampler's `next_batch` returned, and convert it to int64 tensors."""
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
