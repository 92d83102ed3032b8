"""Run folders, and the data that runs were trained on."""

from __future__ import annotations

import argparse
import inspect
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
from ssept_ext.utils.files import read_json, replace_file, write_json

RUN_FILE = "run.json"
METRICS_FILE = "metrics.csv"

Source = dict[str, Any]
"""The arguments of `SASRecDataSet` for a file, or {"synthetic": arguments of `synthetic`}."""


def new_run_folder(out: str | None) -> Path:
    """Return the folder for a new run, by default named after the current time; a ValueError if it is not empty."""
    folder = Path(out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out {folder} is not empty: choose a new folder, or remove it first")
    return folder


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
    if not all(isinstance(part, dict) for part in record.values()):
        raise ValueError(f"{path} is damaged: data and options must be objects")
    return record["data"], record["options"]


def open_run(
    options: argparse.Namespace,
) -> tuple[SASREC, SASRecDataSet, dict[str, Any], tuple[IdMap, IdMap] | None]:
    """Return a run's model, its data or those that `options` names instead, its options, and raw ids if any."""
    device = choose_device(options)
    source, trained_with = read_run_file(Path(options.run))
    model = SASREC.from_pretrained(options.run, backend=options.backend, device=device).eval()
    source = given_source(options) or source
    dataset = load_data(source)
    check_dataset_fits(model, dataset)
    return model, dataset, trained_with, load_ids(source)


def given_source(options: argparse.Namespace) -> Source | None:
    """Return the source that the flags name; None if they name none."""
    if options.data is not None:
        return {"filename": str(Path(options.data).resolve()), "col_sep": options.col_sep}
    if options.col_sep is not None:
        raise ValueError("--col-sep says how to read a file: give --data too")
    return None


def synthetic_source() -> Source:
    """Return the source of the synthetic data set, with all its arguments."""
    parameters = inspect.signature(synthetic).parameters
    return {"synthetic": {name: parameter.default for name, parameter in parameters.items()}}


def load_data(source: Source) -> SASRecDataSet:
    """Read or generate the data of a source."""
    if "synthetic" in source:
        return synthetic(**source["synthetic"])
    return SASRecDataSet(**source)


def load_ids(source: Source) -> tuple[IdMap, IdMap] | None:
    """Return the raw ids of users and items that `ssept prepare` wrote next to the data; None if there are none."""
    path = Path(f"{source.get('filename')}{IDS_SUFFIX}")
    return load_id_maps(path) if path.is_file() else None
