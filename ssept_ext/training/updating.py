"""`update`: a trained model learns new events, users and items, for a share of the cost of a new training.

The steps of an update are the share of those of a training from scratch that new training events have among all. They
train on the users with new training events, and on some others, so that the model keeps what it knew of these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.growing import Growth, grow
from ssept_ext.data.histories import IntArray
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.item_features import ItemFeatures
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.content import checked_features
from ssept_ext.network.growing import NewItems, grown
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.training.callbacks import Callback
from ssept_ext.training.loop import start_run, train_run
from ssept_ext.training.recipe import Recipe, option_names
from ssept_ext.training.run import History
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.options import NOT_NEGATIVE, POSITIVE, check_options, option

MOST_EPOCHS = 10
"""An update has at most as many epochs, after each of which it calls its callbacks and saves its state."""

_NOT_OF_UPDATES = ("val_epoch", "patience", "restore_best", "warmup_steps")


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """How `update` makes and trains a larger model.

    Raises
    ------
    ValueError
        If an option is out of range; names option, limit and value.
    """

    replay: float = option(
        1.0, "users without new events to train on, for each one with", NOT_NEGATIVE
    )
    learning_rate_factor: float = option(
        0.1, "learning rate of the update, relative to that of the training", POSITIVE
    )
    new_items: NewItems = option(
        "neighbours",
        "where vectors of new items start: the mean of the items that users had around them, or of all items",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class UpdateReport:
    """What an update did."""

    new_events: int
    """Events that were added."""
    known_events: int
    """Events that were given, but known already: not counted twice."""
    new_users: int
    new_items: int
    trained_users: int
    """Users that the update trained on: those with new training events, and others."""
    steps: int
    """Training steps; 0 if there was no new training event."""
    history: History
    """As `train_model` returns it."""


def update(
    model: SequentialRecommender,
    interactions: Interactions,
    *,
    preset: str | None = None,
    hold_out: bool | None = None,
    verbose: bool = True,
    seed: int = 0,
    n_workers: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    item_features: ItemFeatures | Mapping[Any, Any] | Any = None,
    **options: Any,
) -> UpdateReport:
    """Add events to a model's histories, and vectors to its tables for new users and items, and train it on.

    The model must know raw ids and histories, as one made by `fit` does. It is changed when all is done: an exception
    or Ctrl-C leaves it as it was. Its parameters are then others, which an optimizer of your own does not have.

    Events may be older than those that the model knows: each user's are in the order of time. An event with the user,
    item and time of a known one is not counted again; without times, none can be recognised so.

    Training takes as many steps as a training of `num_epochs` would take for the new events alone, at
    `learning_rate_factor` of its learning rate, with its schedule, but without its warm-up. The optimizer goes on from
    `model.optimizer_state`, which `fit`, an earlier update, or you with `ssept_ext.checkpoint.load_optimizer` of a run
    folder, have set; without it, and for new rows, Adam's moments start from zero.

    Parameters
    ----------
    model
        An SSEPT or SASREC; `model.update(interactions)` is `update(model, interactions)`.
    interactions
        New events, with raw ids of the types that the model knows, and times in the same unit.
    preset
        That of the training.
    hold_out
        As for `fit`, of all events together; None does as the last training did. If the data were split by time, they
        are split at later moments, so that the parts keep their shares of all events.
    verbose, callbacks
        See `ssept_ext.training.train_model`.
    checkpoint
        A folder of its own where the state of the update is saved: called again with the same arguments, an update that
        was interrupted goes on from there.
    seed
        Seed of the users who are trained on besides those with new events, and of batches and dropout.
    n_workers
        Number of threads that draw batches.
    item_features
        Features of the new items, of a model that was trained with some, as `fit` takes them. Those of items that the
        model knows stay as they are. New items have features 0 if this is None.
    options
        Fields of `UpdateOptions`; and, as given to `fit`, those of `SamplerOptions`, `LoopOptions` and
        `TrainingOptions`.

    Returns
    -------
    UpdateReport
        Numbers of new events, users and items, and of steps.

    Raises
    ------
    TypeError
        If `interactions` has another type, ids are of another type than the model's, or an option is unknown.
    ValueError
        If the model knows no raw ids or no histories, events have no times but those of the model have, nobody and
        nothing in them is known, a user cannot be trained on, or an option is out of range.
    FloatingPointError
        If the loss of a step, or a parameter after the last one, is not finite.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from ssept_ext import SASREC, Interactions
    >>> events = pa.table({"user": ["ann", "ann", "bob"], "item": [10, 20, 30], "timestamp": [1, 2, 3]})
    >>> sizes = {"seq_max_len": 4, "embedding_dim": 4, "num_epochs": 1}
    >>> model = SASREC.fit(Interactions.from_dataframe(events), **sizes, verbose=False)
    >>> later = pa.table({"user": ["bob", "eve"], "item": [40, 20], "timestamp": [4, 5]})
    >>> report = model.update(Interactions.from_dataframe(later), num_epochs=1, verbose=False)
    >>> report.new_events, report.new_users, model.item_num
    (2, 1, 4)
    """
    if not isinstance(interactions, Interactions):
        raise TypeError(
            f"interactions must be Interactions, such as Interactions.from_dataframe makes, "
            f"got {type(interactions).__name__}"
        )
    growth = growth_of(model, interactions)
    assert model.known is not None
    on_all = model.known.to_dataset(hold_out=False)
    if hold_out is None:
        hold_out = model.trained_on != Fingerprint.of(on_all)
    before, dataset = on_all, growth.known.to_dataset(hold_out=False)
    if hold_out:
        moments = None if model.trained_on is None else model.trained_on.split_by_time
        before = model.known.to_dataset()
        if moments is not None:
            before.split_by_time(*moments)
        dataset = split_as(before, growth.known)
    own = {f.name for f in fields(UpdateOptions)}
    chosen = UpdateOptions(**{name: x for name, x in options.items() if name in own})
    rest = {name: x for name, x in options.items() if name not in own}
    recipe = recipe_of(model, preset, rest, dataset.num_users)
    return update_to(
        model,
        growth,
        before,
        dataset,
        recipe,
        chosen,
        verbose=verbose,
        seed=check_at_least("seed", seed, 0),
        n_workers=n_workers,
        checkpoint=checkpoint,
        callbacks=callbacks,
        features=features_of_new_items(model, growth, item_features),
    )


def features_of_new_items(
    model: SequentialRecommender, growth: Growth, item_features: Any
) -> Tensor | None:
    """(new items, F) features of the items that a growth brings; None if there are none.

    Raises
    ------
    TypeError, ValueError
        If the model has no features, or other ones.
    """
    if item_features is None:
        return None
    if model.content is None:
        raise ValueError("item_features must be None for a model that was trained without any")
    rows = ItemFeatures.of(item_features).rows_of(growth.known.item_ids, model.item_num + 1)
    return checked_features(rows, model.config.item_feature_dim)


def split_as(
    before: SASRecDataSet,
    known: KnownHistories,
    valid_share: float | None = None,
    test_share: float | None = None,
) -> SASRecDataSet:
    """Return grown histories as a data set, split as it was before.

    If that was by time, the parts have the same shares of all events, unless others are given.
    """
    dataset = known.to_dataset()
    if before.moments is not None:
        num_events = len(before.histories("all").items)
        held_out = {
            "valid_share": before.histories("valid"),
            "test_share": before.histories("test"),
        }
        shares = {name: len(of.items) / num_events for name, of in held_out.items()}
        given = {"valid_share": valid_share, "test_share": test_share}
        dataset.split_by_time(
            **shares | {name: share for name, share in given.items() if share is not None}
        )
    return dataset


def growth_of(model: SequentialRecommender, interactions: Interactions) -> Growth:
    """Add events to the histories of a model, which stays as it is; errors as of `update`."""
    if is_sharded(model):
        raise ValueError(
            "tables that are spread over processes cannot grow: save the model, and update what SSEPT.from_pretrained "
            "or SASREC.from_pretrained loads"
        )
    if model.known is None:
        raise ValueError(
            "the model knows no raw ids, by which new events could be told from known ones: train it by fit, or by "
            "ssept train on data of ssept prepare"
        )
    return grow(model.known, interactions)


def recipe_of(
    model: SequentialRecommender, preset: str | None, options: Mapping[str, Any], num_users: int
) -> Recipe[Any]:
    """Return the recipe that a training with these options has for a model of these sizes."""
    groups = option_names(type(model))
    for name in options:
        if name in groups["model"]:
            raise TypeError(f"{name} is the model's, which has {getattr(model.config, name)}")
        if name in _NOT_OF_UPDATES:
            raise TypeError(
                f"{name} is not an option of update, which neither validates nor warms up"
            )
    of_model = {name: getattr(model.config, name) for name in groups["model"]}
    return Recipe.of(type(model), preset, {**of_model, **options}, num_users)


def update_to(
    model: SequentialRecommender,
    growth: Growth,
    before: SASRecDataSet,
    dataset: SASRecDataSet,
    recipe: Recipe[Any],
    options: UpdateOptions,
    *,
    verbose: bool = True,
    seed: int = 0,
    n_workers: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    features: Tensor | None = None,
) -> UpdateReport:
    """As `update`, where data are split in any way.

    Parameters
    ----------
    growth
        What `growth_of` returned.
    before
        The data that the model was trained on, split as they were then.
    dataset
        The data of `growth.known`, split as they are to be trained on.
    recipe
        That of the training.
    features
        What `features_of_new_items` returned.
    """
    larger = grown(model, growth.known, options.new_items, features)
    larger.trained_on = Fingerprint.of(dataset)
    history: History = {"loss": [], "seconds": [], "val_ndcg": [], "val_hr": []}
    users, share = _to_train_on(before, dataset, options.replay, seed)
    loop = recipe.loop
    steps = math.ceil(share * loop.num_epochs * max(1, dataset.num_users // loop.batch_size))
    if len(users):
        a_pass = math.ceil(len(users) / loop.batch_size)
        num_steps = max(a_pass, math.ceil(steps / MOST_EPOCHS))
        loop = replace(
            loop,
            num_epochs=math.ceil(steps / num_steps),
            learning_rate=loop.learning_rate * options.learning_rate_factor,
            val_epoch=0,
        )
        training = replace(recipe.training, warmup_steps=0, patience=0, restore_best=False)
        sampler = replace(recipe, loop=loop).make_sampler(
            dataset, larger.seq_max_len, seed, n_workers, users
        )
        generator = torch.Generator().manual_seed(seed)
        with sampler:
            run = start_run(
                larger, dataset, sampler, loop, training, callbacks, generator, num_steps
            )
            run.continue_optimizer(model.optimizer_state or {})
            train_run(run, dataset, verbose, checkpoint, callbacks)
        # The loss of a step is that before it, so the last step's may be finite where its parameters are not.
        for name, parameter in larger.named_parameters():
            if not parameter.isfinite().all():
                raise FloatingPointError(
                    f"{name} is not finite after {run.steps_done} steps: a smaller learning_rate_factor may help"
                )
        history, steps = run.history, run.steps_done
        larger.optimizer_state = run.optimizer_state()
    vars(model).update(vars(larger))
    return UpdateReport(
        **{name: getattr(growth, name) for name in growth._fields if name != "known"},
        trained_users=len(users),
        steps=steps if len(users) else 0,
        history=history,
    )


def _to_train_on(
    before: SASRecDataSet, dataset: SASRecDataSet, replay: float, seed: int
) -> tuple[IntArray, float]:
    """Choose the users to train on; and the share of new events among all training events.

    Users with one training event teach nothing, and no user is chosen if all with new ones are such.
    """
    now = dataset.histories("train", with_times=False)
    lengths = np.diff(now.offsets)
    earlier = before.histories("train", now.users, with_times=False)
    added = np.maximum(lengths - np.diff(earlier.offsets), 0)
    usable = lengths > 1
    fresh = usable & (added > 0)
    others = now.users[usable & ~fresh]
    count = min(len(others), math.ceil(replay * fresh.sum()))
    drawn = np.random.default_rng(seed).choice(others, count, replace=False)
    return np.sort(np.append(now.users[fresh], drawn)), float(added.sum() / max(1, lengths.sum()))
