"""From events under raw ids to a trained model, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from typing import Any, TypeVar

import torch

from ssept_ext._extension import Backend
from ssept_ext.callbacks import Callback
from ssept_ext.data import SASRecDataSet
from ssept_ext.id_map import IdMap
from ssept_ext.interactions import Interactions
from ssept_ext.known_histories import KnownHistories
from ssept_ext.model import SASREC, SSEPT
from ssept_ext.sampler import WarpSampler
from ssept_ext.training import TrainingOptions, train_model
from ssept_ext.unseen import NothingUnseenError

Model = TypeVar("Model", bound=SASREC)

_SAMPLING = ("num_negatives", "popularity_exponent", "window_sampling_prob")
_COUNTED = ("item_num", "user_num")


def fit(
    kind: type[Model],
    interactions: Interactions,
    *,
    hold_out: bool = True,
    num_epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    val_epoch: int = 0,
    eval_batch_size: int = 256,
    verbose: bool = True,
    seed: int = 0,
    n_workers: int = 1,
    backend: Backend = "auto",
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    **arguments: Any,
) -> Model:
    """Make a model for the users and items of `interactions` and train it.

    The model keeps the raw ids and all histories as its `known`, `save_pretrained` writes them, and
    `recommend` and `similar_items` speak them.

    Parameters
    ----------
    kind : SSEPT or SASREC; `SSEPT.fit(interactions)` is `fit(SSEPT, interactions)`
    hold_out : leave the last two events of each user with three or more out of training, for
        `val_epoch` and for `model.evaluate(interactions.to_dataset())`; without it, a model for service,
        which nothing is left to measure on. Recommendations are judged by all events either way.
    seed : of parameters, batches and dropout; torch's global generator is as before afterwards
    n_workers : threads that draw batches
    device : None for CUDA where there is some
    num_epochs to callbacks : as for `ssept_ext.training.train_model`
    arguments : the constructor's but for `item_num` and `user_num`, such as `seq_max_len` (`conv_dims` defaults to
        the model's width); `num_negatives`, `popularity_exponent` and `window_sampling_prob` of `WarpSampler`;
        fields of `TrainingOptions`, such as `loss`

    Raises
    ------
    TypeError
        If `interactions` are none, or an argument is unknown; names it.
    ValueError
        If an argument is out of range, there is nobody to train on, or to validate on, or a user has seen every item;
        names the user by raw id.
    """
    if not isinstance(interactions, Interactions):
        raise TypeError(
            f"interactions must be Interactions, such as Interactions.from_dataframe makes, "
            f"got {type(interactions).__name__}"
        )
    model_options, sampling, training = _sort_arguments(kind, arguments)
    dataset = interactions.to_dataset()
    if not hold_out:
        if val_epoch:
            raise ValueError(f"val_epoch must be 0 without hold_out, got {val_epoch}")
        _train_on_all(dataset)
    if issubclass(kind, SSEPT):
        model_options["user_num"] = len(interactions.user_ids)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]), _raw_ids_in_errors(interactions.user_ids):
        torch.manual_seed(seed)
        model = kind(item_num=len(interactions.item_ids), backend=backend, **model_options)
        model = model.to(device)
        with WarpSampler(
            dataset.user_train,
            dataset.usernum,
            dataset.itemnum,
            batch_size,
            model.seq_max_len,
            n_workers,
            seed=seed,
            **sampling,
        ) as sampler:
            sizes = (num_epochs, batch_size, learning_rate, val_epoch, eval_batch_size)
            train_model(
                model,
                dataset,
                sampler,
                *sizes,
                verbose,
                options=TrainingOptions(**training),
                checkpoint=checkpoint,
                callbacks=callbacks,
            )
    model.known = KnownHistories.from_interactions(interactions)
    return model


@contextmanager
def _raw_ids_in_errors(user_ids: IdMap) -> Iterator[None]:
    try:
        yield
    except NothingUnseenError as error:
        (raw,) = user_ids.decode([error.user]).tolist()
        raise NothingUnseenError(error.user, error.num_items, raw) from None


def _sort_arguments(
    kind: type[SASREC], arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The arguments of the constructor, of the sampler and of `TrainingOptions`."""
    names = (
        [field.name for field in fields(kind.config_class) if field.name not in _COUNTED],
        _SAMPLING,
        list(signature(TrainingOptions).parameters),
    )
    for name in arguments:
        if name in _COUNTED:
            raise TypeError(f"{name} is that of the interactions and cannot be given")
        if not any(name in group for group in names):
            known = ", ".join(name for group in names for name in group)
            raise TypeError(f'{kind.__name__}.fit has no argument "{name}"; it takes {known}')
    model, sampling, training = (
        {name: arguments[name] for name in group if name in arguments} for group in names
    )
    if "conv_dims" not in model:
        width = _width(kind, model)
        model["conv_dims"] = (width, width)
    return model, sampling, training


def _width(kind: type[SASREC], arguments: dict[str, Any]) -> int:
    """D of the model that these arguments make."""
    default = {field.name: field.default for field in fields(kind.config_class)}
    width: int = arguments.get("embedding_dim", default["embedding_dim"])
    if not issubclass(kind, SSEPT):
        return width
    given = (arguments.get(f"{noun}_embedding_dim") for noun in ("item", "user"))
    return sum(width if value is None else value for value in given)


def _train_on_all(dataset: SASRecDataSet) -> None:
    dataset.user_train = dataset.User
    dataset.user_valid = {user: [] for user in dataset.User}
    dataset.user_test = {user: [] for user in dataset.User}
