"""Callbacks after each epoch of training, and some that log its metrics."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ssept_ext import distributed
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.training.options import Validation
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.optional import require


@dataclass(frozen=True)
class EpochFigures:
    """Metrics of a completed epoch."""

    epoch: int
    """Number of the epoch, from 1."""
    step: int
    """Number of steps from the start of training to the end of this epoch."""
    seconds: float
    """Seconds of training up to the end of this epoch, rounded to milliseconds, without validation."""
    loss: float
    """Mean loss of the epoch's steps."""
    val_ndcg: float | None
    """Validation NDCG@10; None if the epoch was not validated."""
    val_hr: float | None
    """Validation HR@10; None if the epoch was not validated."""
    validation: Validation | None
    """What the validation ranked among; None if the epoch was not validated."""
    learning_rate: float
    """Learning rate of the epoch's last step."""


@dataclass(frozen=True)
class Progress:
    """The argument of a callback."""

    model: SequentialRecommender
    """The live model, in training mode. Read, evaluate or save it; do not modify it."""
    epochs: list[EpochFigures]
    """All completed epochs, newest last, including those before a resumed training was interrupted."""
    options: dict[str, Any]
    """All options of the training: those of the model, of training, and of the sampler ("seed of the sampler")."""


Callback = Callable[[Progress], bool | None]
"""A function that is called after each epoch and its validation, in every process. If it returns True, training ends
for good: resuming from its checkpoint returns at once. Checkpoints are saved after the callbacks, so a training that is
killed in between calls them again for the same epoch: callbacks should overwrite their output instead of appending."""


def csv_log(path: str | os.PathLike[str]) -> Callback:
    """Make a callback that writes a CSV file with one row per epoch and the fields of `EpochFigures` as columns.

    The file is replaced atomically after each epoch, so no row is lost or duplicated, however often the training is
    interrupted. Its folder is made if missing. Cells without a value are empty. If several processes train, process 0
    writes.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from ssept_ext import SASREC, WarpSampler
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=data.itemnum, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = csv_log(f"{folder}/metrics.csv")
    ...     with WarpSampler(data.user_train, data.usernum, data.itemnum, batch_size=10, maxlen=4) as sampler:
    ...         _ = model.train_model(data, sampler, num_epochs=1, batch_size=10, verbose=False, callbacks=[log])
    ...     Path(f"{folder}/metrics.csv").read_text().splitlines()[0]
    'epoch,step,seconds,loss,val_ndcg,val_hr,validation,learning_rate'
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


_Write = Callable[[dict[str, float], int, float], object]
"""Writes figures of an epoch by name, for the step and the time (in seconds, as `time.time` has it) at its end."""


def _log_once(start: Callable[[Progress], _Write]) -> Callback:
    """Make a callback that logs each epoch once, in process 0, with what `start` returns at the first call."""
    write: _Write | None = None
    num_logged = 0

    def log(progress: Progress) -> None:
        nonlocal write, num_logged
        if distributed.rank() > 0:
            return
        if write is None:
            write = start(progress)
        began = time.time() - progress.epochs[-1].seconds
        for figures in progress.epochs[num_logged:]:
            scalars = {
                "loss": figures.loss,
                "learning_rate": figures.learning_rate,
                "seconds": figures.seconds,
                "validation/NDCG@10": figures.val_ndcg,
                "validation/HR@10": figures.val_hr,
            }
            known = {name: value for name, value in scalars.items() if value is not None}
            write(known, figures.step, began + figures.seconds)
        num_logged = len(progress.epochs)

    return log


def tensorboard_log(folder: str | os.PathLike[str]) -> Callback:
    """Make a callback that logs to TensorBoard.

    The scalars are "loss", "learning_rate", "seconds", "validation/NDCG@10" and "validation/HR@10". The x axis is the
    training step; wall times are those of training. A resumed training logs all its epochs again and makes TensorBoard
    discard the earlier logs, so that no epoch is missing or duplicated. Use a new folder and a new callback for each
    training.

    Raises
    ------
    ImportError
        If tensorboard is not installed; it comes with `ssept_ext[tensorboard]`.
    """
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def start(_: Progress) -> _Write:
        writer = SummaryWriter(folder, purge_step=0)

        def write(scalars: dict[str, float], step: int, at: float) -> None:
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step, walltime=at)
            writer.flush()

        return write

    return _log_once(start)


def mlflow_log() -> Callback:
    """Make a callback that logs to the active run of MLflow, and starts one if there is none.

    The metrics are those of `tensorboard_log`, with "_at_" for the "@" that MLflow does not allow; the options of the
    training are the run's parameters. A resumed training logs all its epochs again: use a new run and a new callback
    each time.

    Raises
    ------
    ImportError
        If MLflow is not installed; `ssept_ext[mlflow]` installs what logs to a tracking server.
    """
    mlflow = require("mlflow", "mlflow")

    def start(progress: Progress) -> _Write:
        mlflow.log_params(progress.options)

        def write(scalars: dict[str, float], step: int, at: float) -> None:
            metrics = {name.replace("@", "_at_"): value for name, value in scalars.items()}
            mlflow.log_metrics(metrics, step=step, timestamp=int(1000 * at))

        return write

    return _log_once(start)


def trackio_log(project: str, *, api: Any = None, **options: Any) -> Callback:
    """Make a callback that logs to a new run of trackio, or of a module with the same functions, such as wandb.

    The metrics are those of `tensorboard_log`; the options of the training are the run's config. The run starts after
    the first epoch, and ends with the process, or with `trackio.finish()`. A resumed training logs all its epochs to
    another run. Use a new callback for each training.

    Parameters
    ----------
    project
        Name of the project.
    api
        The module; None for trackio. With `import wandb`, `trackio_log("games", api=wandb)` logs to Weights & Biases.
    options
        Other arguments of the module's `init`, such as `name`.

    Raises
    ------
    ImportError
        If `api` is None and trackio is not installed; it comes with `ssept_ext[trackio]`.
    """
    api = require("trackio", "trackio") if api is None else api

    def start(progress: Progress) -> _Write:
        run = api.init(project=project, config=progress.options, **options)
        return lambda scalars, step, _: run.log(scalars, step=step)

    return _log_once(start)
