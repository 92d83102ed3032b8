"""Run folders, and the data that they were made from."""

from __future__ import annotations

import argparse
import inspect
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from ssept_ext.cli.options import choose_device
from ssept_ext.cli.prepare import IDS_SUFFIX
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.id_map import IdMap, load_id_maps
from ssept_ext.data.synthetic import synthetic
from ssept_ext.evaluation.candidates import check_dataset_fits
from ssept_ext.models import SASREC
from ssept_ext.utils.files import replace_file

RUN_FILE = "run.json"
METRICS_FILE = "metrics.csv"

Source = dict[str, Any]
"""The arguments of `SASRecDataSet` for a file, or {"synthetic": those of `synthetic`}."""


def new_run_folder(out: str | None) -> Path:
    """The folder for a new run, by default one named by the time; a ValueError if it is not empty."""
    folder = Path(out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out {folder} is not empty: choose a new folder, or remove it first")
    return folder


def run_file(run: Path) -> Path:
    """The record of a run; a ValueError if there is none."""
    path = run / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: {path} is missing")
    return path


def write_run_file(run: Path, source: Source, options: dict[str, Any]) -> None:
    """Record the source of the data and the options of a training, in a folder made if it is missing."""
    run.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"data": source, "options": options}, indent=2)
    replace_file(run / RUN_FILE, lambda path: path.write_text(record + "\n"))


def read_run_file(run: Path) -> tuple[Source, dict[str, Any]]:
    """The source of the data, and the options of the training."""
    path = run_file(run)
    try:
        record = json.loads(path.read_text())
        return record["data"], record["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def open_run(
    options: argparse.Namespace,
) -> tuple[SASREC, SASRecDataSet, dict[str, Any], tuple[IdMap, IdMap] | None]:
    """The model of a run folder, its data or those given instead, the options it was trained with, and raw ids."""
    device = choose_device(options)
    source, trained_with = read_run_file(Path(options.run))
    model = SASREC.from_pretrained(options.run, backend=options.backend, device=device).eval()
    source = given_source(options) or source
    dataset = load_data(source)
    check_dataset_fits(model, dataset)
    return model, dataset, trained_with, load_ids(source)


def given_source(options: argparse.Namespace) -> Source | None:
    """The source that the flags name, if they do."""
    if options.data is not None:
        return {"filename": str(Path(options.data).resolve()), "col_sep": options.col_sep}
    if options.col_sep is not None:
        raise ValueError("--col-sep says how to read a file: give --data too")
    return None


def synthetic_source() -> Source:
    """The synthetic data set with all its sizes."""
    parameters = inspect.signature(synthetic).parameters
    return {"synthetic": {name: parameter.default for name, parameter in parameters.items()}}


def load_data(source: Source) -> SASRecDataSet:
    """Read, or make, the data of a source."""
    if "synthetic" in source:
        return synthetic(**source["synthetic"])
    return SASRecDataSet(**source)


def load_ids(source: Source) -> tuple[IdMap, IdMap] | None:
    """The raw ids of users and items that `ssept prepare` wrote beside the data, if it did."""
    path = Path(f"{source.get('filename')}{IDS_SUFFIX}")
    return load_id_maps(path) if path.is_file() else None
