"""The data sets of reproduce.py and search.py, and how a preset is changed for each."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssept_ext import SASREC, SSEPT, SASRecDataSet
from ssept_ext.data.histories import Histories, to_offsets
from ssept_ext.data.text import group_by_user

Settings = dict[str, Any]
"""Keywords of `SSEPT.fit` or `SASREC.fit`."""

OFTEN: Settings = {"val_epoch": 5}


@dataclass(frozen=True)
class DataSet:
    file: str
    load: Callable[[Path], SASRecDataSet] = SASRecDataSet
    settings: Callable[[str, Settings], Settings] = lambda _, settings: settings
    """Changes the settings of a preset, which it is given by name and settings."""


def kind_of(preset: str) -> type[SASREC]:
    return SASREC if preset.startswith("sasrec") else SSEPT


def for_games(preset: str, settings: Settings) -> Settings:
    """A preset for short histories of many users, as found by validation: user vectors must be small."""
    loss = settings.get("loss", "bce")
    changes: Settings = {
        "seq_max_len": 50,
        "embedding_dim": 100,
        "dropout_rate": 0.5,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "num_epochs": 150 if loss == "bce" else 40,
        **OFTEN,
    }
    if loss == "sampled_softmax":
        changes["num_negatives"] = 16
    if kind_of(preset) is SSEPT:
        changes |= {"user_embedding_dim": 10, "sse_item_prob": 0.0}
    return settings | changes


def load_ml_100k(path: Path) -> SASRecDataSet:
    """GroupLens's u.data: lines of user, item, rating and time. Events of one time stay in the order of the file."""
    with gzip.open(path) as file:
        users, items, _, times = np.loadtxt(file, np.int64, unpack=True)
    return SASRecDataSet(histories=group_by_user(users, items, times))


def load_filtered_games(path: Path) -> SASRecDataSet:
    """Items with 5 events and more, then users with 5 of those that are left: one pass, as LRURec does."""
    users, offsets, items, _ = SASRecDataSet(path).histories("all")
    rows = np.repeat(np.arange(len(users)), np.diff(offsets))
    kept = np.bincount(items)[items] >= 5
    rows, items = rows[kept], items[kept]
    kept = np.bincount(rows)[rows] >= 5
    rows, items = rows[kept], items[kept]
    lengths = np.bincount(rows)
    numbers = np.unique(items, return_inverse=True)[1] + 1
    lengths = lengths[lengths > 0]
    histories = Histories(np.arange(1, len(lengths) + 1), to_offsets(lengths), numbers)
    return SASRecDataSet(histories=histories)


DATASETS: dict[str, DataSet] = {
    "ml-1m": DataSet("ml-1m.txt.gz"),
    "games": DataSet("games.txt.gz", settings=for_games),
    "games-filtered": DataSet("games.txt.gz", load_filtered_games, for_games),
    "ml-100k": DataSet("ml-100k.u.data.gz", load_ml_100k),
}
