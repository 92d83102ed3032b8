"""Checkpoints of models, a folder with `config.json` and `model.safetensors`, and of interrupted trainings.

No pickle, so none can run code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssept_ext._extension import Backend, build_info
from ssept_ext.model import SASREC, SSEPT

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"

_CLASSES = {"SASREC": SASREC, "SSEPT": SSEPT}


def save_checkpoint(model: SASREC, folder: str | os.PathLike[str]) -> None:
    """Write a model's class, constructor arguments and parameters to `folder`, made where missing.

    Each file is replaced in one step: a crash leaves the old one or the new one, never a part.

    Raises
    ------
    OSError
        If the folder cannot be written.
    TypeError
        If the model is of a class, such as one derived from ours, that could not be loaded again.
    """
    if type(model) not in _CLASSES.values():
        raise TypeError(f"model must be one of {', '.join(_CLASSES)}, got {type(model).__name__}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "version": build_info().version,
        "class": type(model).__name__,
        "arguments": asdict(model.config),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    replace_file(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    replace_file(
        folder / CONFIG_FILE, lambda path: path.write_text(json.dumps(config, indent=2) + "\n")
    )


def load_checkpoint(folder: str | os.PathLike[str], backend: Backend = "auto") -> SASREC:
    """Rebuild the model that `save_checkpoint` wrote, on the CPU, with the dtype it had.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    ValueError
        If one is damaged, was not written by `save_checkpoint`, names a class or a format that this
        version does not know, or if the two do not belong together; names the file.
    """
    config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {folder} is no checkpoint")
    config = _read_config(config_path)
    try:
        model = _CLASSES[config["class"]](**config["arguments"], backend=backend)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_path} has arguments that do not fit: {error}") from error
    try:
        mapped = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is damaged or no safetensors file: {error}") from error
    # Clones, because the tensors of a file may be its mapped pages: a later change of the file, even
    # by another process, must not reach the model.
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{weights_path} does not belong to {config_path}: {error}") from error
    return model


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training depends on, between two epochs."""

    settings: dict[str, Any]
    """JSON; what a training that goes on from here must have been called with."""
    epoch: int
    """Epochs that are done."""
    next_batch: int
    """The sampler's."""
    history: dict[str, list[float]]
    rng: Tensor
    """State of torch's generator on the CPU, which all seeds come from."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """By number of the parameter and name, such as "3.exp_avg"."""
    best: dict[str, Tensor]
    """The model at the best validation so far; empty where it is not kept."""


_GROUPS = ("model", "optimizer", "best")


def save_training(state: TrainingState, folder: str | os.PathLike[str]) -> None:
    """Write a state to `training.safetensors` in `folder`, made where missing.

    One file, whose header holds what is no tensor, replaced in one step: a crash leaves the old
    state or the new one whole.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    tensors = {"rng": state.rng}
    for group in _GROUPS:
        named = getattr(state, group).items()
        tensors |= {f"{group}.{name}": tensor.contiguous() for name, tensor in named}
    plain = {name: value for name, value in vars(state).items() if name not in ("rng", *_GROUPS)}
    header = {"format": str(FORMAT), "state": json.dumps(plain)}
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
    if header.get("format") != str(FORMAT) or "state" not in header:
        raise ValueError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
    fields: dict[str, Any] = {group: {} for group in _GROUPS} | json.loads(header["state"])
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        if name:
            fields[group][name] = tensor
        else:
            fields[group] = tensor
    return TrainingState(**fields)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not {"format", "class", "arguments"} <= config.keys():
        raise ValueError(f"{path} was not written by ssept_ext.save_checkpoint")
    if config["format"] != FORMAT:
        raise ValueError(f"{path} has format {config['format']}, this version reads {FORMAT}")
    if str(config["class"]) not in _CLASSES:
        raise ValueError(
            f"{path} names the class {config['class']}, this version knows {', '.join(_CLASSES)}"
        )
    return config


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, force it to disk, and put it in the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
