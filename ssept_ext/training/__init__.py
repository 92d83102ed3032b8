"""Training: the loop, its options and callbacks, and `fit`."""

from ssept_ext.training.callbacks import (
    Callback,
    EpochFigures,
    Progress,
    csv_log,
    mlflow_log,
    tensorboard_log,
    trackio_log,
)
from ssept_ext.training.fitting import fit
from ssept_ext.training.interruption import TrainingInterrupted
from ssept_ext.training.loop import train_model
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.plotting import plot_curves
from ssept_ext.training.updating import UpdateOptions, UpdateReport, update

__all__ = [
    "Callback",
    "EpochFigures",
    "Progress",
    "TrainingInterrupted",
    "TrainingOptions",
    "UpdateOptions",
    "UpdateReport",
    "csv_log",
    "fit",
    "mlflow_log",
    "plot_curves",
    "tensorboard_log",
    "trackio_log",
    "train_model",
    "update",
]
