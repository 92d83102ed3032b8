"""Checkpoints of models and of training runs. They use no pickle, so loading one cannot run code."""

from ssept_ext.checkpoint.model import load_checkpoint, save_checkpoint
from ssept_ext.checkpoint.recommenders import load_recommenders, state_dict_for_recommenders
from ssept_ext.checkpoint.training_state import (
    TrainingState,
    load_optimizer,
    load_training,
    save_optimizer,
    save_training,
)

__all__ = [
    "TrainingState",
    "load_checkpoint",
    "load_optimizer",
    "load_recommenders",
    "load_training",
    "save_checkpoint",
    "save_optimizer",
    "save_training",
    "state_dict_for_recommenders",
]
