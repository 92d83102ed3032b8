"""The state of a training run, from which it can be resumed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssept_ext.utils.files import replace_file

TRAINING_FILE = "training.safetensors"


TRAINING_FORMAT = 2


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


_TENSORS, _GROUPS = ("rng", "losses"), ("model", "optimizer", "best")


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
        named = getattr(state, group).items()
        tensors |= {f"{group}.{name}": tensor.contiguous() for name, tensor in named}
    plain = {name: value for name, value in vars(state).items() if name not in _TENSORS + _GROUPS}
    header = {"format": str(TRAINING_FORMAT), "state": json.dumps(plain)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_file(Path(folder) / TRAINING_FILE, lambda path: save_file(tensors, path, header))


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
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            # Clone, because the tensors may be memory-mapped, at any alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    if header.get("format") != str(TRAINING_FORMAT) or "state" not in header:
        raise ValueError(
            f"{path} has format {header.get('format')}, this version reads {TRAINING_FORMAT}"
        )
    fields: dict[str, Any] = {group: {} for group in _GROUPS} | json.loads(header["state"])
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        if name:
            fields[group][name] = tensor
        else:
            fields[group] = tensor
    return TrainingState(**fields)
