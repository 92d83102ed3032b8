"""The command `ssept update`."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ssept_ext.checkpoint.model import save_checkpoint
from ssept_ext.checkpoint.training_state import TRAINING_FILE, load_optimizer, save_optimizer
from ssept_ext.cli.options import (
    add_device,
    add_fields,
    add_item_features,
    add_run,
    add_shares,
    choose_device,
    filled,
    number,
)
from ssept_ext.cli.prepare import IDS_SUFFIX, add_columns, read_events
from ssept_ext.cli.runs import (
    OF_MODEL,
    Source,
    alone_in,
    as_type_of,
    data_of_model,
    load_data,
    read_run_file,
    write_run_file,
)
from ssept_ext.cli.train import recipe_of_run
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.growing import Growth
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.item_features import ItemFeatures
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.prepared import is_prepared
from ssept_ext.data.splits import ByTime, counts_of
from ssept_ext.models import SASREC
from ssept_ext.training.interruption import TrainingInterrupted
from ssept_ext.training.updating import (
    UpdateOptions,
    UpdateReport,
    features_of_new_items,
    growth_of,
    split_as,
    update_to,
)
from ssept_ext.utils.options import NOT_NEGATIVE


def update(options: argparse.Namespace) -> int:
    """Add new events, users and items to a trained model, and train it on.

    Until all is done, the run folder is as before, but for the state of the update, in a folder of its own.
    """
    run = Path(options.run)
    source, recorded = read_run_file(run)
    if (run / TRAINING_FILE).is_file():
        raise ValueError(f"the training of {run} is not over: ssept resume {run}")
    recipe, recorded = recipe_of_run(run, recorded)
    events = _read(options)
    with alone_in(run):
        device = choose_device(options)
        model = SASREC.from_pretrained(run, backend=options.backend, device=device)
        try:
            growth = growth_of(model, _as_known(model, events))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{run}, {options.events}: {error}") from error
        if not growth.new_events:
            print(f"{run} knows all {growth.known_events:,} events: nothing to do")
            return 0
        model.optimizer_state = load_optimizer(run)
        before = data_of_model(model, source)
        dataset, new_source = _split(growth.known, before, options)
        own = [field.name for field in fields(UpdateOptions) if field.name in options]
        chosen = UpdateOptions(**{name: getattr(options, name) for name in own})
        features = _features(model, growth, options.item_features)
        of_state = (dataset.histories("all").digest(with_times=True), chosen, options.seed)
        state = run / f"update-{hashlib.sha256(repr(of_state).encode()).hexdigest()[:8]}"
        start = time.monotonic()
        try:
            report = update_to(
                model,
                growth,
                before,
                dataset,
                recipe,
                chosen,
                seed=options.seed,
                checkpoint=state,
                features=features,
            )
        except TrainingInterrupted as error:
            print(
                f"ssept: the model in {run} is as before; the same command goes on with the update",
                file=sys.stderr,
            )
            return error.code
        # In this order: killed in between, the folder holds the new model, and data and an optimizer that fit it.
        save_checkpoint(model, run)
        write_run_file(run, new_source, recorded)
        if model.optimizer_state is not None:
            save_optimizer(model.optimizer_state, run)
        for folder in run.glob("update-*"):
            shutil.rmtree(folder)
    more = len(dataset.histories("train").items) - len(before.histories("train").items)
    _print(report, None if dataset.moments is None else more, time.monotonic() - start)
    return 0


def _read(options: argparse.Namespace) -> Interactions:
    """Read the new events, which may be prepared or not, without leaving out users and items with few events."""
    path = options.events
    if is_prepared(path):
        return Interactions.load(path, verify=True)
    if Path(f"{path}{IDS_SUFFIX}").is_file():
        dataset = load_data({"filename": path, "col_sep": None})
        assert dataset.user_ids is not None
        assert dataset.item_ids is not None
        users = np.arange(1, len(dataset.user_ids) + 1)
        _, offsets, items, times = dataset.histories("all", users)
        return Interactions(offsets, items, times, dataset.user_ids, dataset.item_ids)
    return Interactions.from_events(read_events(path, options)[2])


def _as_known(model: SASREC, events: Interactions) -> Interactions:
    """Make texts of ids that are all integers in the file, where the model knows ids that are not."""
    if model.known is None:
        return events
    users = as_type_of(model.known.user_ids, events.user_ids)
    items = as_type_of(model.known.item_ids, events.item_ids)
    return replace(events, user_ids=users, item_ids=items)


def _features(model: SASREC, growth: Growth, path: str | None) -> Tensor | None:
    """Read the features of new items, as `features_of_new_items` returns them."""
    if path is None:
        return None
    features = ItemFeatures.read(path)
    features = replace(features, item_ids=as_type_of(growth.known.item_ids, features.item_ids))
    try:
        return features_of_new_items(model, growth, features)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--item-features {path}: {error}") from error


def _split(
    known: KnownHistories, before: SASRecDataSet, options: argparse.Namespace
) -> tuple[SASRecDataSet, Source]:
    """Split the grown data as they were before: at moments, by the same shares of all events."""
    given = {name: getattr(options, name) for name in ("valid_share", "test_share")}
    for name, share in given.items():
        if share is not None and before.moments is None:
            raise ValueError(f"--{name.replace('_', '-')} is for a run of ssept train --split time")
    dataset = split_as(before, known, **given)
    if dataset.moments is None:
        return dataset, OF_MODEL
    counts = counts_of(dataset.histories("all"), ByTime(*dataset.moments))
    print(f"split by time: {counts}")
    return dataset, {**OF_MODEL, "split_by_time": [*dataset.moments]}


def _print(report: UpdateReport, more: int | None, seconds: float) -> None:
    """Print what an update did, of data that are split by time also by how many training events they are more."""
    for_training = "" if more is None else f"; {more:,} more are for training"
    known = f", {report.known_events:,} known already" if report.known_events else ""
    print(
        f"events   {report.new_events:,} new{known}{for_training}\n"
        f"grown    by {report.new_users:,} users and {report.new_items:,} items\n"
        f"trained  {report.steps:,} steps, on {report.trained_users:,} users, in {seconds:.1f} s"
    )


def add_update_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `update`."""
    add_run(parser)
    parser.add_argument(
        "--data",
        dest="events",
        required=True,
        type=filled,
        metavar="FILE",
        help="the new events: a file that ssept prepare reads or writes; those that the model knows already are not "
        "counted twice, if the data have times (required)",
    )
    add_columns(parser)
    add_item_features(parser, "new items", "their features are 0")
    defaults = vars(UpdateOptions())
    add_fields(parser, UpdateOptions, defaults, defaults)
    add_shares(parser, "of a run of --split time", "the run's")
    parser.add_argument(
        "--seed",
        default=0,
        help="draws users without new events, batches and negatives",
        **number(int, NOT_NEGATIVE),
    )
    add_device(parser)
