"""Checkpoints of models and of interrupted trainings. No pickle, so none can run code.

A model's folder has a `config.json` and the files that it names:

    config.json                  format, class, constructor arguments, names of the others
    model-DIGEST.safetensors     parameters
    ids-DIGEST.json              raw ids, where the model knows them
    histories-DIGEST.safetensors histories, where it knows them, or
    counts-DIGEST.safetensors    events of each item, where histories are left out

Only replacing `config.json` puts new files in the place of old ones, so that all change together. Format 1 had a
`model.safetensors` and nothing else; it is still read.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssept_ext._extension import Backend, build_info
from ssept_ext.data import Histories
from ssept_ext.files import Write, digest, remove_leftovers, replace_file, store_file
from ssept_ext.id_map import load_id_maps, save_id_maps
from ssept_ext.known_histories import KnownHistories
from ssept_ext.model import SASREC, SSEPT

FORMAT = 2
CONFIG_FILE = "config.json"
TRAINING_FILE = "training.safetensors"
TRAINING_FORMAT = 2

_CLASSES = {"SASREC": SASREC, "SSEPT": SSEPT}
_FORMAT_1_FILES = {"model": "model.safetensors"}
_SUFFIXES = {
    "model": "safetensors",
    "ids": "json",
    "histories": "safetensors",
    "counts": "safetensors",
}
_KNOWN_FILES = ({"model"}, {"model", "ids", "histories"}, {"model", "ids", "counts"})
_STORED = re.compile(
    "|".join(rf"{stem}-[0-9a-f]{{16}}\.{suffix}" for stem, suffix in _SUFFIXES.items())
)


def save_checkpoint(
    model: SASREC, folder: str | os.PathLike[str], *, histories: bool = True
) -> None:
    """Write a model, and the raw ids and histories that it knows, to `folder`, made where missing.

    All change in one step: a crash, also one of the machine, leaves the old checkpoint or the new one.
    Other files in the folder are left alone. Two processes must not save to one folder at a time.

    Parameters
    ----------
    histories : False leaves out what each user did, and keeps how many events each item had. Users' ids and vectors
        stay. `recommend` then has to be told the histories of the users that the model knows.

    Raises
    ------
    OSError
        If the folder cannot be written.
    TypeError
        If the model is of a class, such as one derived from ours, that could not be loaded again.
    ValueError
        If what the model knows is not of as many users and items as it has.
    """
    if type(model) not in _CLASSES.values():
        raise TypeError(f"model must be one of {', '.join(_CLASSES)}, got {type(model).__name__}")
    if model.known is not None:
        _check_fits(model, model.known)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    files = {"model": _store(folder, "model", lambda path: save_file(tensors, path))}
    known = model.known
    if known is not None:
        ids = (known.user_ids, known.item_ids)
        files["ids"] = _store(folder, "ids", lambda path: save_id_maps(path, *ids))
        if histories and known.histories is not None:
            stem, events = "histories", _events(known.histories)
        else:
            stem, events = "counts", {"counts": torch.tensor(known.popularity)}
        files[stem] = _store(folder, stem, lambda path: save_file(events, path))
    config = {
        "format": FORMAT,
        "version": build_info().version,
        "class": type(model).__name__,
        "arguments": asdict(model.config),
        "files": files,
    }
    text = json.dumps(config, indent=2) + "\n"
    replace_file(folder / CONFIG_FILE, lambda path: path.write_text(text))
    _remove_others(folder, files)


def load_checkpoint(
    folder: str | os.PathLike[str],
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
) -> SASREC:
    """Rebuild the model that `save_checkpoint` wrote, on `device`, with the dtype it had.

    It may be read while another process saves: what comes back was saved together.

    Raises
    ------
    FileNotFoundError
        If one of the files is missing.
    ValueError
        If one is damaged, was not written by `save_checkpoint`, names a class or a format that this
        version does not know, or if they do not belong together; names the file.
    """
    path = Path(folder) / CONFIG_FILE
    while True:
        config = _read_config(path)
        try:
            return _load(path, config, backend).to(device)
        except FileNotFoundError:
            if config == _read_config(path):  # otherwise another process has saved meanwhile
                raise


def _check_fits(model: SASREC, known: KnownHistories) -> None:
    num_users, num_items = len(known.user_ids), len(known.item_ids)
    user_num = getattr(model, "user_num", num_users)  # SASREC serves any users
    if (user_num, model.item_num) != (num_users, num_items):
        raise ValueError(
            f"the model has {user_num} users and {model.item_num} items, but knows raw ids of "
            f"{num_users} users and {num_items} items"
        )


def _events(histories: Histories) -> dict[str, Tensor]:
    return {
        "offsets": torch.tensor(histories.offsets),
        "items": torch.tensor(histories.items, dtype=torch.int32),
    }


def _store(folder: Path, stem: str, write: Write) -> str:
    return store_file(folder, stem, _SUFFIXES[stem], write)


def _remove_others(folder: Path, files: Mapping[str, str]) -> None:
    """Remove what earlier checkpoints, and processes that were killed while they saved, have left."""
    for path in folder.iterdir():
        ours = _STORED.fullmatch(path.name) is not None or path.name in _FORMAT_1_FILES.values()
        if ours and path.name not in files.values():
            path.unlink(missing_ok=True)
    for name in (CONFIG_FILE, *(f"{stem}.{suffix}" for stem, suffix in _SUFFIXES.items())):
        remove_leftovers(folder, name)


def _load(config_path: Path, config: dict[str, Any], backend: Backend) -> SASREC:
    paths = _find_files(config_path, config)
    try:
        model = _CLASSES[config["class"]](**config["arguments"], backend=backend)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_path} has arguments that do not fit: {error}") from error
    tensors = _read_tensors(paths["model"])
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{paths['model']} does not belong to {config_path}: {error}") from error
    if "ids" in paths:
        model.known = _read_known(paths)
        try:
            _check_fits(model, model.known)
        except ValueError as error:
            raise ValueError(f"{paths['ids']} does not belong to {config_path}: {error}") from error
    return model


def _find_files(config_path: Path, config: dict[str, Any]) -> dict[str, Path]:
    """The files of a checkpoint, there and undamaged."""
    files = _FORMAT_1_FILES if config["format"] == 1 else _named_files(config_path, config)
    paths = {stem: config_path.with_name(name) for stem, name in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {path.parent} is no checkpoint")
        if config["format"] > 1 and digest(path) not in path.name:
            raise ValueError(f"{path} is damaged: it is not as it was saved")
    return paths


def _named_files(config_path: Path, config: dict[str, Any]) -> dict[str, str]:
    files = config.get("files")
    if (
        not isinstance(files, dict)
        or set(files) not in _KNOWN_FILES
        or not all(isinstance(name, str) and _STORED.fullmatch(name) for name in files.values())
    ):
        raise ValueError(f"{config_path} is damaged: its files are {files!r}")
    return files


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        mapped = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    # Clones, because the tensors of a file may be its mapped pages: a later change of the file, even
    # by another process, must not reach the model.
    return {name: tensor.clone() for name, tensor in mapped.items()}


def _read_known(paths: Mapping[str, Path]) -> KnownHistories:
    ids = load_id_maps(paths["ids"])
    path = paths.get("histories") or paths["counts"]
    arrays = {name: x.numpy().astype(np.int64) for name, x in _read_tensors(path).items()}
    try:
        if "counts" in paths:
            return KnownHistories(*ids, None, arrays["counts"])
        offsets = arrays["offsets"]
        histories = Histories(np.arange(1, len(offsets)), offsets, arrays["items"])
        return KnownHistories(*ids, histories)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not belong to {paths['ids']}: {error}") from error


def load_recommenders(
    kind: type[SASREC],
    path: str | os.PathLike[str],
    attention_num_heads: int,
    **arguments: Any,
) -> SASREC:
    """Make a model of the state dict that `torch.save` wrote of recommenders' SSEPT or SASREC.

    Only tensors are read (`weights_only=True`): the file cannot run code.

    Parameters
    ----------
    kind : SSEPT or SASREC
    attention_num_heads : required, because parameters do not tell it, and another number loads as well
        and gives other scores
    arguments : more of the constructor's, such as `dropout_rate`; sizes come from the parameters

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds other things than tensors or parameters of another model; names it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no state dict of tensors: {error}") from error
    foreign = f"{path} holds no {kind.__name__} of recommenders"
    try:
        sizes = _sizes(tensors, kind)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{foreign}: {error!r}") from error
    model = kind(**{**sizes, "attention_num_heads": attention_num_heads, **arguments})
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{foreign}: {error}") from error
    return model


def _sizes(tensors: Mapping[str, Tensor], kind: type[SASREC]) -> dict[str, Any]:
    """The constructor arguments that the shapes of recommenders' parameters tell."""
    items, item_width = tensors["item_embedding_layer.weight"].shape
    seq_max_len, width = tensors["positional_embedding_layer.weight"].shape
    inner = tensors["encoder.enc_layers.0.ffn.conv_layer1.weight"].shape[0]
    blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.enc_layers.")}
    sizes = {
        "item_num": items - 1,
        "seq_max_len": seq_max_len,
        "num_blocks": len(blocks),
        "embedding_dim": item_width,
        "conv_dims": (inner, width),
    }
    if issubclass(kind, SSEPT):
        users, user_width = tensors["user_embedding_layer.weight"].shape
        sizes |= {"user_num": users - 1, "user_embedding_dim": user_width}
    return sizes


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


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is no checkpoint")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not {"format", "class", "arguments"} <= config.keys():
        raise ValueError(f"{path} was not written by ssept_ext.save_checkpoint")
    if config["format"] not in range(1, FORMAT + 1):
        raise ValueError(f"{path} has format {config['format']}, this version reads 1 to {FORMAT}")
    if str(config["class"]) not in _CLASSES:
        raise ValueError(
            f"{path} names the class {config['class']}, this version knows {', '.join(_CLASSES)}"
        )
    return config
