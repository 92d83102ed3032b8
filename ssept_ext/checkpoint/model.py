"""Checkpoints of models. They use no pickle, so loading one cannot run code.

A checkpoint is a folder with a `config.json` and the files that it names:

    config.json                   format, class, constructor arguments, names of the other files
    model-DIGEST.safetensors      parameters
    ids-DIGEST.json               raw ids, if the model has them
    histories-DIGEST.safetensors  histories, if the model has raw ids and these are saved
    counts-DIGEST.safetensors     number of events per item, if it has raw ids and histories are not saved

Files are written under new names first; replacing `config.json` then switches to all of them at once. Format 1 had no
other files than `config.json` and `model.safetensors`; it can still be read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssept_ext._extension import Backend, build_info
from ssept_ext.data.histories import Histories
from ssept_ext.data.id_map import load_id_maps, save_id_maps
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.files import Write, digest, remove_leftovers, replace_file, store_file

FORMAT = 2


CONFIG_FILE = "config.json"


_CLASS_NAMES = ("SASREC", "SSEPT")
"""Names of the classes in `ssept_ext.models` that can be saved and loaded."""


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


Model = TypeVar("Model", bound=SequentialRecommender)


def save_checkpoint(
    model: SequentialRecommender, folder: str | os.PathLike[str], *, histories: bool = True
) -> None:
    """Write a model, with its raw ids and histories if it has them, to `folder`, which is made if missing.

    The checkpoint is replaced atomically: a crash, even of the machine, leaves either the old one or the new one. Other
    files in the folder are left alone. Two processes must not save to the same folder at the same time.

    Parameters
    ----------
    histories
        False saves only the number of events per item instead of each user's history. Users' ids and vectors are
        saved in either case. `recommend` then needs `histories` for known users.

    Raises
    ------
    OSError
        If the folder cannot be written.
    TypeError
        If the model's class could not be loaded again, such as a subclass of your own.
    ValueError
        If the model's raw ids do not have as many users and items as its tables.

    Examples
    --------
    >>> import tempfile
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     restored = SASREC.from_pretrained(folder)
    >>> bool((restored.item_vectors() == model.item_vectors()).all())
    True
    """
    kind = type(model)
    if kind.__name__ not in _CLASS_NAMES or kind.__module__ != "ssept_ext.models":
        raise TypeError(f"model must be one of {', '.join(_CLASS_NAMES)}, got {kind.__name__}")
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
    classes: Mapping[str, type[Model]],
    folder: str | os.PathLike[str],
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
) -> Model:
    """Load a model that `save_checkpoint` wrote, with its dtype. `from_pretrained` of the models calls this.

    Loading is safe while another process saves to the same folder: it returns one checkpoint or the other.

    Parameters
    ----------
    classes
        The classes of `ssept_ext.models`, by name.
    backend
        Which kernels to run, see `ssept_ext.set_backend`.
    device
        Where to put the model.

    Raises
    ------
    FileNotFoundError
        If a file is missing; names it.
    ValueError
        If a file is damaged, was not written by `save_checkpoint`, has an unknown class or format, or does not belong
        to the others; names it.
    """
    path = Path(folder) / CONFIG_FILE
    while True:
        config = _read_config(path)
        try:
            return _load(classes, path, config, backend).to(device)
        except FileNotFoundError:
            if config == _read_config(path):  # if it changed, another process has saved: try again
                raise


def _check_fits(model: SequentialRecommender, known: KnownHistories) -> None:
    num_users, num_items = len(known.user_ids), len(known.item_ids)
    user_num = getattr(model, "user_num", num_users)  # SASREC has no user table
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
    """Remove the files of earlier checkpoints, and those that killed processes left behind."""
    for path in folder.iterdir():
        ours = _STORED.fullmatch(path.name) is not None or path.name in _FORMAT_1_FILES.values()
        if ours and path.name not in files.values():
            path.unlink(missing_ok=True)
    for name in (CONFIG_FILE, *(f"{stem}.{suffix}" for stem, suffix in _SUFFIXES.items())):
        remove_leftovers(folder, name)


def _load(
    classes: Mapping[str, type[Model]], config_path: Path, config: dict[str, Any], backend: Backend
) -> Model:
    paths = _find_files(config_path, config)
    try:
        model = classes[config["class"]](**config["arguments"], backend=backend)
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
    """Return the files of a checkpoint, after checking that they exist and are undamaged."""
    files = _FORMAT_1_FILES if config["format"] == 1 else _named_files(config_path, config)
    paths = {stem: config_path.with_name(name) for stem, name in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {path.parent} is not a checkpoint")
        if config["format"] > 1 and digest(path) not in path.name:
            raise ValueError(
                f"{path} is damaged: its content does not match the digest in its name"
            )
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
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    # Clone, because the tensors may be memory-mapped: a later change of the file must not change the model.
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


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a checkpoint")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not {"format", "class", "arguments"} <= config.keys():
        raise ValueError(f"{path} was not written by ssept_ext.save_checkpoint")
    if config["format"] not in range(1, FORMAT + 1):
        raise ValueError(f"{path} has format {config['format']}, this version reads 1 to {FORMAT}")
    if str(config["class"]) not in _CLASS_NAMES:
        raise ValueError(
            f"{path} names the class {config['class']}, this version knows {', '.join(_CLASS_NAMES)}"
        )
    return config
