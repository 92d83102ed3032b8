"""The state of a training run, from which it can be resumed, and that of its optimizer, from which an update starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ssept_ext.checkpoint.tensors import read_tensors
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.tensor_files import tensors_digest, write_tensors

TRAINING_FILE = "training.safetensors"

TRAINING_FORMAT = 2

OPTIMIZER_FILE = "optimizer.safetensors"

OPTIMIZER_FORMAT = "ssept_ext optimizer 1"


@dataclass(frozen=True)
class TrainingState:
    """Everything that the rest of a training run depends on, between two steps. See `save_training`."""

    settings: dict[str, Any]
    """Settings that a run must share to resume from here, as JSON types."""
    epoch: int
    """Number of completed epochs."""
    ended: bool
    """Whether a callback has ended the training."""
    seconds: float
    """Seconds spent on the completed steps of the current epoch."""
    next_batch: int
    """Index of the sampler's next batch."""
    history: dict[str, list[float]]
    """Figures of the completed epochs, as `train_model` returns them."""
    rng: Tensor
    """State of torch's generator on the CPU, which all seeds are drawn from."""
    losses: Tensor
    """(completed steps of the current epoch,) float64 losses."""
    model: dict[str, Tensor]
    """State dict of the model."""
    optimizer: dict[str, Tensor]
    """State of the optimizer, keyed by index of the parameter and name, such as "3.exp_avg"."""
    best: dict[str, Tensor]
    """State dict of the model at the best validation so far; empty unless `restore_best`."""
    tables: dict[str, Tensor]
    """State of a row-wise optimizer of the tables; empty for Adam."""


_TENSORS, _GROUPS = ("rng", "losses"), ("model", "optimizer", "best", "tables")


def save_training(state: TrainingState, folder: str | os.PathLike[str]) -> None:
    """Write a state to `training.safetensors` in `folder`, which is made if missing.

    The state is one file, with everything but tensors in its header. It is replaced atomically: a crash leaves either
    the old state or the new one.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {name: getattr(state, name) for name in _TENSORS}
    for group in _GROUPS:
        tensors |= {f"{group}.{name}": x for name, x in getattr(state, group).items()}
    tensors = {name: x.cpu() for name, x in tensors.items()}  # once for both digest and file
    plain = {name: value for name, value in vars(state).items() if name not in _TENSORS + _GROUPS}
    header = {"format": str(TRAINING_FORMAT), "state": json.dumps(plain)}
    header["digest"] = tensors_digest(tensors, header)
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_file(Path(folder) / TRAINING_FILE, lambda path: write_tensors(path, tensors, header))


def load_training(folder: str | os.PathLike[str]) -> TrainingState | None:
    """Read a state that `save_training` wrote, on the CPU; None if there is none.

    Raises
    ------
    ValueError
        If the file is damaged, was not written by `save_training`, or has a format that this version
        does not know; names it.
    """
    path = Path(folder) / TRAINING_FILE
    if not path.is_file():
        return None
    tensors, header = read_tensors(path)
    expected = header.pop("digest", None)  # which earlier versions did not write
    if header.get("format") != str(TRAINING_FORMAT) or header.keys() != {"format", "state"}:
        raise ValueError(
            f"{path} has format {header.get('format')}, this version reads {TRAINING_FORMAT}"
        )
    if expected not in (None, tensors_digest(tensors, header)):
        raise ValueError(f"{path} is damaged: its content does not match its digest")
    fields: dict[str, Any] = {group: {} for group in _GROUPS}
    try:
        fields |= json.loads(header["state"])
        for key, tensor in tensors.items():
            group, _, name = key.partition(".")
            if name:
                fields[group][name] = tensor
            else:
                fields[group] = tensor
        return TrainingState(**fields)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def save_optimizer(state: Mapping[str, Tensor], folder: str | os.PathLike[str]) -> None:
    """Write the state of an optimizer to `optimizer.safetensors` in `folder`, from where an update starts.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    tensors = {name: x.cpu() for name, x in state.items()}
    header = {"format": OPTIMIZER_FORMAT}
    header["digest"] = tensors_digest(tensors, header)
    replace_file(Path(folder) / OPTIMIZER_FILE, lambda path: write_tensors(path, tensors, header))


def load_optimizer(folder: str | os.PathLike[str]) -> dict[str, Tensor] | None:
    """Read the state of the optimizer that a finished `ssept train`, or `ssept update`, left in its run folder.

    Returns
    -------
    dict[str, Tensor] or None
        By names such as "item_embedding_layer.weight.exp_avg", on the CPU; None if there is none.

    Raises
    ------
    ValueError
        If the file is damaged or something else; names it.
    """
    path = Path(folder) / OPTIMIZER_FILE
    if not path.is_file():
        return None
    tensors, header = read_tensors(path)
    digest = header.pop("digest", None)
    if header != {"format": OPTIMIZER_FORMAT}:
        raise ValueError(f"{path} is not the state of an optimizer that this version reads")
    if digest != tensors_digest(tensors, header):
        raise ValueError(f"{path} is damaged: its content does not match its digest")
    return tensors
