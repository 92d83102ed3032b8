"""Models to save, and changes of the files that they are saved in."""

import json

import numpy as np
from safetensors.torch import save_file
from support.factories import tiny_model

from ssept_ext import SASREC, SSEPT, IdMap
from ssept_ext.checkpoint.model import CONFIG_FILE
from ssept_ext.data.histories import Histories
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.utils.files import digest, write_json


def make_ssept(**arguments):
    sizes = {"user_num": 7, "embedding_dim": 6, "user_embedding_dim": 2, "ffn_dim": 4}
    return _make(SSEPT, **sizes | arguments)


def make_sasrec(**arguments):
    return _make(SASREC, **{"embedding_dim": 6} | arguments)


def _make(kind, **arguments):
    """With other arguments than the constructor's defaults, for a checkpoint to bring back."""
    sizes = {"seq_max_len": 5, "dropout_rate": 0.25, "l2_reg": 0.5}
    return tiny_model(kind, **sizes | arguments)


def named(folder, stem="model"):
    """The file that the checkpoint has now."""
    return folder / json.loads((folder / CONFIG_FILE).read_text())["files"][stem]


def write_tensors(folder, stem, tensors):
    """Put other tensors in the place of a file, as if they had been saved."""
    path = named(folder, stem)
    save_file(tensors, path)
    new = path.rename(path.with_name(f"{stem}-{digest(path)}.safetensors"))
    config = json.loads((folder / CONFIG_FILE).read_text())
    edit_config(folder, files=config["files"] | {stem: new.name})


def as_format_1(folder):
    named(folder).rename(folder / "model.safetensors")
    edit_config(folder, format=1)


def edit_config(folder, **changes):
    """Change the config, with a digest as if it had been written so."""
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text()) | changes
    del config["digest"]
    write_json(path, config)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def knowing(model, users="abcdefg", times=None):
    """The model, with raw ids and four events."""
    offsets = np.array([0, 3, 3, *[4] * (len(users) - 2)])
    items = np.array([4, 1, 20, 4])
    times = None if times is None else np.array(times)
    events = Histories(np.arange(1, len(users) + 1), offsets, items, times)
    model.known = KnownHistories(IdMap(list(users), "user"), IdMap(range(100, 120), "item"), events)
    return model
