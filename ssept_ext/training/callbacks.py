"""What is called after each epoch of a training, and ready-made logs of its figures."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ssept_ext import distributed
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require


@dataclass(frozen=True)
class EpochFigures:
    """What is known of an epoch when it is over; None where no validation followed it."""

    epoch: int
    """From 1."""
    step: int
    """Steps from the start of the training to the end of this epoch."""
    seconds: float
    """Of training up to there, in milliseconds' precision, validation not counted."""
    loss: float
    """Mean of the epoch's steps."""
    val_ndcg: float | None
    """NDCG@10."""
    val_hr: float | None
    """HR@10."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told."""

    model: SequentialRecommender
    """As it is now, in training mode; to look at, to measure and to save."""
    epochs: list[EpochFigures]
    """All that are over, the newest last. A training that was taken up again has those from before, too."""


Callback = Callable[[Progress], bool | None]
"""Called after each epoch and its validation, in every process. True ends the training, for good: called again with
its checkpoint, it returns at once. The state is saved after the callbacks, so that a training killed in between calls
them again for the same epoch: better replace what was written than add to it."""


def csv_log(path: str | os.PathLike[str]) -> Callback:
    """Make a callback that keeps a CSV file with a line for each epoch, under the names in `EpochFigures`.

    The whole file is replaced in one step each time, and its folder made where missing: no line is lost
    or there twice, however often the training is interrupted. Cells without a figure are empty. Of several
    processes, process 0 writes.
    """
    path = Path(path)

    def write(part: Path, epochs: list[EpochFigures]) -> None:
        with part.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in fields(EpochFigures))
            writer.writerows(map(astuple, epochs))

    def log(progress: Progress) -> None:
        if distributed.rank() > 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda part: write(part, progress.epochs))

    return log


def tensorboard_log(folder: str | os.PathLike[str]) -> Callback:
    """Make a callback that logs figures for TensorBoard in `folder`, over the steps of the training.

    The scalars are "loss", "validation/NDCG@10" and "validation/HR@10", at the time of training from which they
    are. A training that is taken up again logs all its epochs anew and has TensorBoard forget what it logged before, so
    that none is missing or there twice. Use another folder, and another callback, for each training.

    Raises
    ------
    ImportError
        If tensorboard is missing: it comes with `ssept_ext[tensorboard]`.
    """
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None
    num_logged = 0

    def log(progress: Progress) -> None:
        nonlocal writer, num_logged
        if distributed.rank() > 0:
            return
        if writer is None:  # not before there is something to log, because it makes a file
            writer = SummaryWriter(folder, purge_step=0)
        start = time.time() - progress.epochs[-1].seconds
        for figures in progress.epochs[num_logged:]:
            scalars = {
                "loss": figures.loss,
                "validation/NDCG@10": figures.val_ndcg,
                "validation/HR@10": figures.val_hr,
            }
            for tag, value in scalars.items():
                if value is not None:
                    writer.add_scalar(tag, value, figures.step, walltime=start + figures.seconds)
        num_logged = len(progress.epochs)
        writer.flush()

    return log
