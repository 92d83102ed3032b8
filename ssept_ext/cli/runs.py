"""Run folders, and the data that runs were trained on."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssept_ext import distributed
from ssept_ext.cli.options import choose_device
from ssept_ext.cli.prepare import IDS_SUFFIX
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.id_map import IdMap, load_id_maps
from ssept_ext.data.item_features import ItemFeatures, with_padding
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.prepared import is_prepared, load_prepared
from ssept_ext.data.synthetic import synthetic
from ssept_ext.models import SASREC, SSEPT
from ssept_ext.network.identity import in_ids_of
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.files import lock_file, read_json, replace_file, write_json

RUN_FILE = "run.json"
METRICS_FILE = "metrics.csv"
LOCK_FILE = ".lock"
KINDS: dict[str, type[SASREC]] = {"ssept": SSEPT, "sasrec": SASREC}

Source = dict[str, Any]
"""The arguments of `SASRecDataSet` for a file, or `OF_MODEL`, and perhaps {"split_by_time": its two moments}; or
{"synthetic": arguments of `synthetic`}."""

OF_MODEL: Source = {"histories": "of the model"}
"""The source of a run that was updated: all its events are in the model's checkpoint."""


def new_run_folder(out: str | None) -> Path:
    """Return the folder for a new run, by default named after the current time; a ValueError if it is not empty."""
    folder = Path(out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    check_empty(folder)
    return folder


def check_empty(folder: Path) -> None:
    """Raise a ValueError if a folder for a new run holds anything but the lock of a run."""
    if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise ValueError(f"--out {folder} is not empty: choose a new folder, or remove it first")


@contextmanager
def alone_in(run: Path, new: bool = False) -> Iterator[None]:
    """Keep other processes from training in a run folder, which is made if missing, as long as this one lives.

    Raises
    ------
    ValueError
        If another process trains in it, or it must be `new` and another process has trained in it meanwhile.
    """
    run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(lock_file(run / LOCK_FILE))
        except BlockingIOError as error:
            raise ValueError(f"another process trains in {run}") from error
        if new:
            check_empty(run)
        yield


def run_file(run: Path) -> Path:
    """Return the path of a run's run.json; a ValueError if there is none."""
    path = run / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{run} is not a run folder: {path} is missing")
    return path


def write_run_file(run: Path, source: Source, options: dict[str, Any]) -> None:
    """Write the source of the data and the options of a run to its folder, which is made if missing."""
    run.mkdir(parents=True, exist_ok=True)
    record = {"data": source, "options": options}
    replace_file(run / RUN_FILE, lambda path: write_json(path, record))


def read_run_file(run: Path) -> tuple[Source, dict[str, Any]]:
    """Return the source of the data and the options of a run."""
    path = run_file(run)
    record = read_json(path, ("data", "options"))
    source, options = record["data"], record["options"]
    if not _is_source(source):
        raise ValueError(f"{path} is damaged: it names no data, but {source!r:.99}")
    if not isinstance(options, dict) or options.get("model") not in list(KINDS):
        raise ValueError(f"{path} is damaged: its options are not those of a run")
    check_at_least(f"{path} is damaged: seed", options.get("seed"), 0)
    return source, options


def _is_source(source: Any) -> bool:
    if not isinstance(source, dict):
        return False
    made = source.get("synthetic")
    if isinstance(made, dict):
        return made.keys() <= synthetic_source()["synthetic"].keys() and all(
            type(value) in (int, float) for value in made.values()
        )
    separator, moments = source.get("col_sep"), source.get("split_by_time", [0, 0])
    if not (
        isinstance(moments, list)
        and len(moments) == 2
        and all(type(moment) is int for moment in moments)
    ):
        return False
    return _is_of_model(source) or (
        source.keys() - {"split_by_time"} == {"filename", "col_sep"}
        and isinstance(source["filename"], str)
        and (separator is None or isinstance(separator, str))
    )


def _is_of_model(source: Source) -> bool:
    """Whether a source is `OF_MODEL`, split in any way."""
    return {name: x for name, x in source.items() if name != "split_by_time"} == OF_MODEL


def open_run(
    options: argparse.Namespace,
) -> tuple[SASREC, SASRecDataSet, dict[str, Any], tuple[IdMap, IdMap] | None]:
    """Return a run's model, its data or those that `options` names instead, its options, and raw ids if any."""
    device = choose_device(options)
    source, trained_with = read_run_file(Path(options.run))
    model = SASREC.from_pretrained(options.run, backend=options.backend, device=device).eval()
    given = given_source(options)
    if given is not None and "split_by_time" in source:
        given["split_by_time"] = source["split_by_time"]
    is_own = given is None and _is_of_model(source)
    dataset = data_of_model(model, source) if is_own else load_data(given or source)
    try:
        dataset = in_ids_of(model, dataset)
    except ValueError as error:
        raise ValueError(f"{options.run}: {error}") from error
    if model.known is None and model.trained_on is not None:
        found = Fingerprint.of(dataset)
        if found.histories != model.trained_on.histories:
            change = f"{options.run} belongs to {model.trained_on.against(found)}"
            if given is None:
                raise ValueError(f"{change}: to use it nevertheless, give --data")
            print(
                f"ssept: note: {change}, whose numbers are taken for the same ids", file=sys.stderr
            )
    ids = model.known if dataset.item_ids is None else dataset
    if ids is None or ids.user_ids is None or ids.item_ids is None:
        return model, dataset, trained_with, None
    return model, dataset, trained_with, (ids.user_ids, ids.item_ids)


def given_source(options: argparse.Namespace) -> Source | None:
    """Return the source that the flags name; None if they name none."""
    if options.data is not None:
        if is_prepared(options.data) and options.col_sep is not None:
            raise ValueError(f"--col-sep is for text, which {options.data} is not by its name")
        return {"filename": str(Path(options.data).resolve()), "col_sep": options.col_sep}
    if options.col_sep is not None:
        raise ValueError("--col-sep says how to read a file: give --data too")
    return None


def split_as(dataset: SASRecDataSet, source: Source, options: argparse.Namespace) -> Source:
    """Split the data as the flags say, and return the source with the moments, if any; prints what is in the parts."""
    given = {name: getattr(options, name) for name in ("valid_share", "test_share")}
    shares = {name: share for name, share in given.items() if share is not None}
    if options.split == "last":
        for name in shares:
            raise ValueError(f"--{name.replace('_', '-')} is for --split time")
        return source
    if "synthetic" in source:
        raise ValueError("--split time: the synthetic data have no times, give --data")
    try:
        counts = dataset.split_by_time(**shares)
    except ValueError as error:
        raise ValueError(f"{source['filename']}: {error}") from None
    if distributed.rank() == 0:
        print(f"split by time: {counts}")
    return {**source, "split_by_time": [counts.valid_from, counts.test_from]}


def synthetic_source() -> Source:
    """Return the source of the synthetic data set, with all its arguments."""
    parameters = inspect.signature(synthetic).parameters
    return {"synthetic": {name: parameter.default for name, parameter in parameters.items()}}


def data_of_model(model: SASREC, source: Source) -> SASRecDataSet:
    """Return all events that a model knows, split as the source says."""
    if model.known is None:
        raise ValueError("the data of the run are to be the model's, which knows none")
    dataset = model.known.to_dataset()
    if "split_by_time" in source:
        dataset.split_by_time(*source["split_by_time"])
    return dataset


def load_data(source: Source) -> SASRecDataSet:
    """Read or generate the data of a source, with the raw ids that `ssept prepare` wrote next to the file, if any."""
    if "synthetic" in source:
        return synthetic(**source["synthetic"])
    dataset = SASRecDataSet(source["filename"], source["col_sep"])
    if "split_by_time" in source:
        dataset.split_by_time(*source["split_by_time"])
    if is_prepared(source["filename"]):
        load_prepared(
            source["filename"], verify=True
        )  # beside hours of training, this takes no time
        return dataset
    path = Path(f"{dataset.filename}{IDS_SUFFIX}")
    if path.is_file():
        ids = load_id_maps(path, dataset.histories("all").digest())
        known = KnownHistories.from_dataset(dataset, *ids)  # which checks the numbers of ids
        dataset.user_ids, dataset.item_ids = known.user_ids, known.item_ids
    return dataset


def features_of(path: str, dataset: SASRecDataSet) -> NDArray[np.float32]:
    """Read features of items for a data set: (I + 1, F). Without raw ids, the file has the numbers of the items."""
    ids = dataset.item_ids
    if ids is None:
        ids = IdMap(np.arange(1, dataset.itemnum + 1), "item")
    features = ItemFeatures.read(path)
    features = replace(features, item_ids=as_type_of(ids, features.item_ids))
    try:
        return with_padding(features.rows_of(ids))
    except TypeError as error:
        raise ValueError(f"--item-features {path}: {error}") from error


def as_type_of(known: IdMap, ids: IdMap) -> IdMap:
    """Make texts of ids that are all integers in a file, where those known are not all integers."""
    if (ids.type, known.type) == ("int64", "str"):
        return IdMap([*map(str, ids.raw.tolist())], ids.noun)
    return ids
