"""The state of a training run: model, optimizer, history, and everything else that a checkpoint holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.checkpoint.training_state import TrainingState, load_training, save_training
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.packed import PackedBatch, number_rows, round_up_tokens
from ssept_ext.data.sse import SSE, replace_ids
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.sampling.protocols import (
    DigestingSampler,
    LengthKnowingSampler,
    NumberingSampler,
    ReplacingSampler,
    Sampler,
    SeekableSampler,
)
from ssept_ext.training import data_parallel
from ssept_ext.training.callbacks import Callback, EpochFigures, Progress
from ssept_ext.training.cuda_graph import training_step
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.step import draw_seeds, eager_step, make_loss, make_optimizer
from ssept_ext.training.table_rows import table_rows

History = dict[str, list[float]]

_OF_ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps for a parameter."""


class Run:
    """A training run in progress.

    Attributes
    ----------
    epoch
        Number of completed epochs.
    losses
        (completed steps of the current epoch,) float64 losses.
    seconds
        Seconds spent on the current epoch's completed steps.
    history
        Metrics of the completed epochs, as `train_model` returns them.
    best
        The parameters at the best validation so far; empty unless `restore_best`.
    stopped
        Whether a callback has ended the training.
    steps_done
        Number of steps taken so far, each of which drew one seed.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        sampler: Sampler,
        loop: LoopOptions,
        options: TrainingOptions,
        num_steps: int,
        generator: torch.Generator,
    ) -> None:
        """Start a run of `num_steps` steps an epoch; the seeds of dropout and SSE are drawn from `generator`."""
        self.model, self.sampler, self.generator = model, sampler, generator
        self.loop, self.options, self.num_steps = loop, options, num_steps
        self.optimizer = make_optimizer(model, loop.learning_rate, options)
        self._rows = table_rows(model, options, self.optimizer)
        self.history: History = {"loss": [], "seconds": [], "val_ndcg": [], "val_hr": []}
        self.epoch = 0
        self.stopped = False
        self.losses = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.seconds = 0.0
        self.best: dict[str, Tensor] = {}
        self.steps_done = 0
        # A step that runs a user's methods applies SSE in them.
        self._sse = model.sse if model.is_capturable else SSE()
        self._learning_rate = loop.learning_rate
        self._features = None if model.content is None else model.content.digest()
        if model.device.type == "cuda":  # a tensor, because a captured step reads it
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(loop.learning_rate, device=model.device)
        loss = make_loss(model, sampler, options)
        if distributed.size() > 1:
            apart = [] if self._rows is None else [*self._rows.tables]
            loss = data_parallel.data_parallel(model, loss, apart)
        self._step = training_step(
            eager_step(self.optimizer, loss, options.max_grad_norm, self._rows),
            self.optimizer,
            model.device,
            model.seq_max_len,
            distributed.size(),
            sampler.sequence_lengths() if isinstance(sampler, LengthKnowingSampler) else None,
            capture=model.is_capturable,
            table_sizes=[] if self._rows is None else self._rows.sizes(),
        )
        self._must_compare_batches = distributed.size() > 1
        self._numbers_whole_batches = self._rows is not None and not self._rows.of_parts

    def take_step(self, batch: PackedBatch) -> Tensor:
        """Take a training step on a batch on the CPU and return its loss, without waiting for the device.

        If several processes train, each takes a part of the batch, and the average of their losses is the loss of the
        batch.
        """
        self._set_learning_rate(self._learning_rate_at(self.steps_done))
        seed = draw_seeds(1, self.generator)
        self.steps_done += 1
        if self._sse.is_active and not batch.ids_replaced:
            batch = replace_ids(batch, self._sse, int(seed))
        if self._numbers_whole_batches:
            batch = number_rows(batch)
        if distributed.size() > 1:
            if self._must_compare_batches:
                data_parallel.check_same_batch(batch)
                self._must_compare_batches = False
            batch = data_parallel.shard(batch, distributed.rank(), distributed.size())
        if self._rows is not None:
            batch = number_rows(batch)
        if self.options.precision == "bf16" and self.model.device.type == "cpu":
            batch = round_up_tokens(batch)
        with distributed.raise_if_peer_lost():
            return self._step(batch, seed)

    def _learning_rate_at(self, step: int) -> float:
        num_steps = self.num_steps * self.loop.num_epochs
        return self.loop.learning_rate * self.options.learning_rate_factor(step, num_steps)

    def _set_learning_rate(self, learning_rate: float) -> None:
        if learning_rate == self._learning_rate:  # avoids kernel launches on a GPU
            return
        self._learning_rate = learning_rate
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    @contextmanager
    def in_training_mode(self) -> Iterator[None]:
        """Put the model in training mode; on exit, restore its mode and free the gradients."""
        was_training = self.model.training
        self.model.train()
        try:
            yield
        finally:
            self.model.train(was_training)
            self.optimizer.zero_grad()  # they may be in the memory of a CUDA graph

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Until the end of the context, let the sampler apply SSE, and find the rows that batches read.

        Each step does it for samplers that cannot.
        """
        with ExitStack() as stack:
            if self._sse.is_active and isinstance(self.sampler, ReplacingSampler):
                stack.enter_context(self.sampler.replacing(self._sse))
            if self._numbers_whole_batches and isinstance(self.sampler, NumberingSampler):
                stack.enter_context(self.sampler.numbering_rows())
            yield

    def is_over(self) -> bool:
        """Whether all epochs are completed, a callback has ended the training, or patience has run out."""
        ndcgs, patience = self.history["val_ndcg"], self.options.patience
        ran_out = 0 < patience < len(ndcgs) and max(ndcgs[-patience:]) <= max(ndcgs[:-patience])
        return self.stopped or ran_out or self.epoch >= self.loop.num_epochs

    def end_epoch(self) -> None:
        """Add the current epoch, whose steps are all completed, to the history."""
        self.history["loss"].append(self.losses.mean().item())
        self.history["seconds"].append(sum(self.history["seconds"][-1:]) + self.seconds)
        self.epoch += 1
        self.losses, self.seconds = self.losses[:0], 0.0

    def note_validation(self, ndcg: float, hr: float) -> None:
        """Add a validation to the history and, for `restore_best`, keep the parameters if it is the best so far."""
        is_best = ndcg > max(self.history["val_ndcg"], default=-math.inf)
        self.history["val_ndcg"].append(ndcg)
        self.history["val_hr"].append(hr)
        if is_best and self.options.restore_best:
            self.best = {name: x.clone() for name, x in self.model.state_dict().items()}
            if self._rows is not None:
                self._rows.keep_best()

    def restore_best(self) -> None:
        """Put the best parameters by validation back into the model, if any were kept."""
        if self.best:
            self.model.load_state_dict(self.best)
            if self._rows is not None:
                self._rows.restore_best()

    def call(self, callbacks: Sequence[Callback]) -> None:
        """Call the callbacks after an epoch; the training ends if any of them, in any process, returns True."""
        if callbacks:
            progress = Progress(self.model, self._figures(), self._all_options())
            wishes = [callback(progress) for callback in callbacks]
            self.stopped = any(distributed.gather(any(wishes)))

    def _figures(self) -> list[EpochFigures]:
        """Return the history, epoch by epoch."""
        history, val_epoch = self.history, self.loop.val_epoch
        validations = zip(history["val_ndcg"], history["val_hr"], strict=True)
        epochs = []
        for i, (seconds, loss) in enumerate(
            zip(history["seconds"], history["loss"], strict=True), 1
        ):
            was_validated = val_epoch and i % val_epoch == 0
            ndcg, hr = next(validations) if was_validated else (None, None)
            how = self.options.validation if was_validated else None
            step = i * self.num_steps
            rate = self._learning_rate_at(step - 1)
            epochs.append(EpochFigures(i, step, round(seconds, 3), loss, ndcg, hr, how, rate))
        return epochs

    def _all_options(self) -> dict[str, Any]:
        """Return the options of the model, of training and of the sampler, as given or by default."""
        drawing = self.sampler.settings if isinstance(self.sampler, SeekableSampler) else {}
        return {
            "model": type(self.model).__name__,
            **asdict(self.model.config),
            **asdict(self.loop),
            **asdict(self.options),
            **{f"{name} of the sampler": value for name, value in drawing.items()},
        }

    def where(self) -> str:
        """Describe the progress of the training, for messages."""
        epochs = f"{self.loop.num_epochs}"
        if len(self.losses):
            step = f"step {len(self.losses)} of {self.num_steps}"
            return f"{step} of epoch {self.epoch + 1} of {epochs}"
        return f"epoch {self.epoch} of {epochs}"

    def settings(self) -> dict[str, Any]:
        """Return the settings that a run must share with a checkpoint to resume from it, as JSON types."""
        assert isinstance(self.sampler, SeekableSampler)
        assert self.model.trained_on is not None
        settings = {
            "data": asdict(self.model.trained_on),
            "model": type(self.model).__name__,
            **asdict(self.model.config),
            "learning_rate": self.loop.learning_rate,
            "val_epoch": self.loop.val_epoch,
            **asdict(self.options),
            "item_features": self._features,
            "steps of an epoch": self.num_steps,
            "histories of the sampler": self.sampler.digest()
            if isinstance(self.sampler, DigestingSampler)
            else None,
            **{f"{name} of the sampler": value for name, value in self.sampler.settings.items()},
        }
        if not self.loop.val_epoch:
            del settings["validation"]
        if self.options.schedule != "constant":
            settings["num_epochs"] = self.loop.num_epochs
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the state of the optimizer, and of a row-wise one of the tables, by names like "PARAMETER.exp_avg"."""
        state = {} if self._rows is None else dict(self._rows.state)
        for name, parameter in self.model.named_parameters():
            kept = self.optimizer.state.get(parameter, {})
            state |= {f"{name}.{kind}": x for kind, x in kept.items()}
        return state

    def continue_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """Start from what `optimizer_state` returned for a model whose tables had fewer rows, or as many.

        Rows and parameters that it has nothing of start as usual.

        Raises
        ------
        ValueError
            If it is of another model; names what does not fit.
        """
        rows = {} if self._rows is None else self._rows.state
        for name, x in rows.items():
            if name in state:
                x.copy_(_with_rows_of(x, name, state[name]))
        for name, parameter in self.model.named_parameters():
            kinds = [kind for kind in _OF_ADAM if f"{name}.{kind}" in state]
            if kinds == [*_OF_ADAM] and f"{name}.exp_avg" not in rows:
                step, *moments = (state[f"{name}.{kind}"] for kind in kinds)
                places = [f"{name}.{kind}" for kind in kinds[1:]]
                fitted = map(partial(_with_rows_of, parameter), places, moments)
                values = [step.to(parameter.device, copy=True), *fitted]
                self.optimizer.state[parameter] = dict(zip(kinds, values, strict=True))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save the complete state, between two steps; all processes call this, and process 0 writes most of it."""
        assert isinstance(self.sampler, SeekableSampler)
        tables = {} if self._rows is None else self._rows.save(Path(folder))
        if distributed.rank() != 0:
            return
        moments = self.optimizer.state_dict()["state"]
        state = TrainingState(
            settings=self.settings(),
            epoch=self.epoch,
            ended=self.stopped,
            seconds=self.seconds,
            next_batch=self.sampler.tell(),
            history=self.history,
            rng=self.generator.get_state(),
            losses=self.losses,
            model=self.model.state_dict(),
            optimizer={f"{i}.{name}": x for i, xs in moments.items() for name, x in xs.items()},
            tables=tables,
            best=self.best,
        )
        save_training(state, folder)
        if self._rows is not None:
            self._rows.saved(Path(folder))

    def resume(self, folder: str | os.PathLike[str]) -> None:
        """Resume from the state in `folder`, if there is one.

        Raises
        ------
        ValueError
            If the sampler cannot seek, or the state was saved with other data or settings; names the first that
            differs.
        """
        if not isinstance(self.sampler, SeekableSampler):
            raise ValueError(
                f"checkpoint needs a sampler with seek and tell, such as WarpSampler, "
                f"got {type(self.sampler).__name__}"
            )
        state = load_training(folder)
        if state is None:
            return
        # Earlier versions did not have all options; `precision` was called `bf16`.
        then = asdict(TrainingOptions(bf16=state.settings.get("bf16")))
        then |= {f.name: f.default for f in fields(self.model.config) if f.default is not MISSING}
        saved, ours = then | state.settings, self.settings()
        for name in ("data", "histories of the sampler"):  # which earlier versions did not save
            saved.setdefault(name, ours[name])
        saved.setdefault("negatives_per of the sampler", SamplerOptions.negatives_per)
        belongs_to, data = Fingerprint(**saved.pop("data")), Fingerprint(**ours.pop("data"))
        if belongs_to != data:
            raise ValueError(f"checkpoint {folder} belongs to {belongs_to.against(data)}")
        for name, value in ours.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"checkpoint {folder} was saved by a training with {name} = {saved.get(name)!r}, "
                    f"got {value!r}"
                )
        self.model.load_state_dict(state.model)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.optimizer.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self._rows is not None:
            self._rows.load(Path(folder), state.tables)
        self.sampler.seek(state.next_batch)
        self.generator.set_state(state.rng)
        self.history, self.best = state.history, state.best
        self.epoch, self.stopped = state.epoch, state.ended
        self.losses, self.seconds = state.losses, state.seconds
        self.steps_done = state.epoch * self.num_steps + len(state.losses)


def _with_rows_of(like: Tensor, name: str, x: Tensor) -> Tensor:
    """Return a copy of x with as many rows as another tensor, where those that it lacks are zero."""
    fits = x.dim() == like.dim() and x.shape[1:] == like.shape[1:]
    if not fits or x.shape[:1] > like.shape[:1]:
        raise ValueError(
            f"the state of the optimizer is of another model: {name} has shape {[*x.shape]}, which does not fit "
            f"{[*like.shape]}"
        )
    whole = torch.zeros_like(like, requires_grad=False)
    if x.dim():
        whole[: len(x)] = x
    else:
        whole.copy_(x)
    return whole
