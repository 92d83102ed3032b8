"""The state of a training, from which it can be resumed."""

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
    """All that the rest of a training depends on, between two steps."""

    settings: dict[str, Any]
    """JSON; what a training that goes on from here must have been called with."""
    epoch: int
    """Epochs that are done."""
    ended: bool
    """Whether a callback ended it."""
    seconds: float
    """Spent on the steps of the epoch in progress."""
    next_batch: int
    """The sampler's."""
    history: dict[str, list[float]]
    rng: Tensor
    """State of torch's generator on the CPU, which all seeds come from."""
    losses: Tensor
    """(steps that are done of the epoch in progress,) float64"""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """By number of the parameter and name, such as "3.exp_avg"."""
    best: dict[str, Tensor]
    """The model at the best validation so far; empty where it is not kept."""


_TENSORS, _GROUPS = ("rng", "losses"), ("model", "optimizer", "best")


def save_training(state: TrainingState, folder: str | os.PathLike[str]) -> None:
    """Write a state to `training.safetensors` in `folder`, made where missing.

    One file, whose header holds what is no tensor, replaced in one step: a crash leaves the old
    state or the new one whole.

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
    """Read what `save_training` wrote, on the CPU; None if there is no such file.

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
            # Clones, because tensors may be pages of the file, at any alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
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
