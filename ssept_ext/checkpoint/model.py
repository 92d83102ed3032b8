"""Checkpoints of models. They use no pickle, so loading one cannot run code.

A checkpoint is a folder with a `config.json` and the files that it names:

    config.json                   format, class, constructor arguments, names of the other files
    model-DIGEST.safetensors      parameters
    ids-DIGEST.json               raw ids, if the model has them
    histories-DIGEST.safetensors  histories, with times if there are any, if the model has raw ids and these are saved
    counts-DIGEST.safetensors     number of events per item, if it has raw ids and histories are not saved

Files are written under new names first; replacing `config.json` then switches to all of them at once. Format 1 had no
other files than `config.json` and `model.safetensors`; it can still be read. `config.json` holds a digest of itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ssept_ext._extension import Backend, build_info
from ssept_ext.checkpoint.tensors import read_shapes, read_tensors, sizes_of
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.histories import Histories
from ssept_ext.data.id_map import load_id_maps, save_id_maps
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.config import config_from_arguments
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import Shards, is_sharded
from ssept_ext.utils.files import (
    DIGEST_LENGTH,
    digest,
    locked,
    put_file,
    read_json,
    store_file,
    write_json,
)
from ssept_ext.utils.meta_device import without_parameters
from ssept_ext.utils.tensor_files import RowBlocks, map_tensors, write_blocks, write_tensors

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
    "|".join(rf"{stem}-[0-9a-f]{{{DIGEST_LENGTH}}}\.{suffix}" for stem, suffix in _SUFFIXES.items())
)

Model = TypeVar("Model", bound=SequentialRecommender)


def save_checkpoint(
    model: SequentialRecommender,
    folder: str | os.PathLike[str],
    *,
    histories: bool = True,
    overwrite: bool = False,
) -> None:
    """Write a model, with its raw ids and histories if it has them, to `folder`, which is made if missing.

    The checkpoint is replaced atomically: a crash, even of the machine, leaves either the old one or the new one. Other
    files in the folder are left alone. Of several processes that save to the same folder, one waits for the other, and
    the last one's checkpoint remains.

    Parameters
    ----------
    histories
        False saves only the number of events per item instead of each user's history. Users' ids and vectors are
        saved in either case. `recommend` then needs `histories` for known users.
    overwrite
        Whether to replace a `config.json` that this package did not write, or write beside a `model.safetensors` of
        another program.

    Raises
    ------
    FileExistsError
        If the folder holds one of these files and `overwrite` is False; names it.
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
    if kind.__name__ not in _CLASS_NAMES or not kind.__module__.startswith("ssept_ext."):
        raise TypeError(f"model must be one of {', '.join(_CLASS_NAMES)}, got {kind.__name__}")
    store_checkpoint(model, kind.__name__, folder, histories, overwrite)


def store_checkpoint(
    model: SequentialRecommender,
    class_name: str,
    folder: str | os.PathLike[str],
    histories: bool,
    overwrite: bool,
    tables: Mapping[str, RowBlocks] | None = None,
) -> None:
    """As `save_checkpoint`, for a model to be loaded as this class, with `tables` that its state dict lacks."""
    if model.known is not None:
        _check_fits(model, model.known)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        earlier = _earlier_files(folder, overwrite)
        files = _store_files(model, folder, histories, tables)
        config = {
            "format": FORMAT,
            "version": build_info().version,
            "class": class_name,
            "arguments": asdict(model.config),
            "trained_on": model.trained_on and asdict(model.trained_on),
            "files": files,
        }
        put_file(folder / CONFIG_FILE, lambda path: write_json(path, config))
        for path in folder.iterdir():  # of earlier checkpoints, and of saves that were killed
            ours = path.name in earlier.values() or _STORED.fullmatch(path.name)
            if ours and path.name not in files.values():
                path.unlink(missing_ok=True)


def _earlier_files(folder: Path, overwrite: bool) -> dict[str, str]:
    """Return the files of the checkpoint in a folder; a FileExistsError if there are those of another program."""
    path = folder / CONFIG_FILE
    try:
        return _named_files(path, _read_config(path))
    except FileNotFoundError:
        path = folder / _FORMAT_1_FILES["model"]
        if not path.exists():
            return {}
        reason = f"no {CONFIG_FILE} is beside it"
    except ValueError as error:
        reason = str(error)
    if overwrite:
        return {}
    raise FileExistsError(
        f"{path} is not of a checkpoint that this version can replace ({reason}): choose another folder, "
        f"or overwrite=True"
    )


def _store_files(
    model: SequentialRecommender,
    folder: Path,
    histories: bool,
    tables: Mapping[str, RowBlocks] | None,
) -> dict[str, str]:
    """Write all files but the config, and return their names."""
    files, known, tensors = {}, model.known, {}
    parameters = model.state_dict()
    write = partial(write_tensors, tensors=parameters)
    if tables is not None:
        write = partial(write_blocks, tensors={**parameters, **tables})
    files["model"] = store_file(folder, "model", "safetensors", write)
    if known is not None:
        ids = (known.user_ids, known.item_ids)
        files["ids"] = store_file(folder, "ids", "json", lambda path: save_id_maps(path, *ids))
        if histories and known.histories is not None:
            _, offsets, items, times = known.histories
            of_items = torch.from_numpy(items.astype(np.int32))
            tensors["histories"] = {"offsets": torch.from_numpy(offsets), "items": of_items}
            if times is not None:  # which tell an update what it knows already
                tensors["histories"]["times"] = torch.from_numpy(times)
        else:
            tensors["counts"] = {"counts": torch.from_numpy(known.popularity)}
    for stem, named in tensors.items():
        write = partial(write_tensors, tensors=named)
        files[stem] = store_file(folder, stem, "safetensors", write)
    return files


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


def _load(
    classes: Mapping[str, type[Model]], config_path: Path, config: dict[str, Any], backend: Backend
) -> Model:
    paths = _find_files(config_path, config)
    kind, arguments = classes[config["class"]], config["arguments"]
    try:
        fitted = config_from_arguments(kind.config_class, kind.__name__, arguments)
        data = config.get("trained_on")
        trained_on = None if data is None else Fingerprint(**data)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{config_path} has arguments that do not fit: {error}") from error
    shapes = read_shapes(paths["model"])
    try:
        # First, because a model for a wrong config may be larger than the memory.
        wanted = {**asdict(fitted), "embedding_dim": fitted.item_dim}
        for name, size in sizes_of(shapes, kind.config_class).items():
            if wanted[name] != size:
                raise ValueError(f"{name} is {size} in the one and {wanted[name]} in the other")
        # Draws no parameters, which would take the memory of a second model.
        with without_parameters():
            model = kind(**arguments, backend=backend)
        tensors, _ = map_tensors(paths["model"])
        shards: Shards = model.shards() if is_sharded(model) else {}
        for name, (first, rows) in shards.items():
            rows.copy_(tensors.pop(name)[first : first + len(rows)])
        # Clones, because a later change of the file must not change them.
        model.load_state_dict({name: x.clone() for name, x in tensors.items()}, assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{paths['model']} does not belong to {config_path}: {error}") from error
    model.trained_on = trained_on
    if "ids" in paths:
        model.known = _read_known(paths)
        try:
            _check_fits(model, model.known)
        except ValueError as error:
            raise ValueError(f"{paths['ids']} does not belong to {config_path}: {error}") from error
    return model


def _find_files(config_path: Path, config: dict[str, Any]) -> dict[str, Path]:
    """Return the files of a checkpoint, after checking that they exist and are undamaged."""
    paths = {
        stem: config_path.with_name(name)
        for stem, name in _named_files(config_path, config).items()
    }
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {path.parent} is not a checkpoint")
        if config["format"] > 1 and digest(path) not in path.name:
            raise ValueError(
                f"{path} is damaged: its content does not match the digest in its name"
            )
    return paths


def _named_files(config_path: Path, config: dict[str, Any]) -> dict[str, str]:
    files = _FORMAT_1_FILES if config["format"] == 1 else config.get("files")
    if (
        not isinstance(files, dict)
        or set(files) not in _KNOWN_FILES
        or not all(
            isinstance(name, str) and (config["format"] == 1 or _STORED.fullmatch(name))
            for name in files.values()
        )
    ):
        raise ValueError(f"{config_path} is damaged: its files are {files!r:.200}")
    return files


def _read_known(paths: Mapping[str, Path]) -> KnownHistories:
    ids = load_id_maps(paths["ids"])
    path = paths.get("histories") or paths["counts"]
    try:
        arrays = {name: x.numpy().astype(np.int64) for name, x in read_tensors(path)[0].items()}
        if "counts" in paths:
            return KnownHistories(*ids, None, arrays["counts"])
        offsets = arrays["offsets"]
        users, times = np.arange(1, len(offsets)), arrays.get("times")
        histories = Histories(users, offsets, arrays["items"], times)
        return KnownHistories(*ids, histories)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not belong to {paths['ids']}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a checkpoint")
    config = read_json(path, ("format", "class", "arguments"), ("version", "trained_on", "files"))
    if config["format"] not in range(1, FORMAT + 1):
        raise ValueError(
            f"{path} has format {config['format']!s:.99}, this version reads 1 to {FORMAT}"
        )
    if config["class"] not in _CLASS_NAMES:
        raise ValueError(
            f"{path} names the class {config['class']!s:.99}, this version knows {', '.join(_CLASS_NAMES)}"
        )
    return config
