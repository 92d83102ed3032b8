"""`fit`: from events with raw ids to a trained model, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssept_ext._extension import Backend
from ssept_ext.data.interactions import Interactions
from ssept_ext.data.item_features import ItemFeatures, with_padding
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.data.times import Time
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.training.callbacks import Callback
from ssept_ext.training.recipe import Recipe
from ssept_ext.utils.checks import check_at_least, check_bool

Model = TypeVar("Model", bound=SequentialRecommender)


def fit(
    kind: type[Model],
    interactions: Interactions,
    *,
    preset: str | None = None,
    hold_out: bool = True,
    split: Literal["last", "time"] | tuple[Time, Time] = "last",
    verbose: bool = True,
    seed: int = 0,
    n_workers: int = 1,
    backend: Backend = "auto",
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    item_features: ItemFeatures | Mapping[Any, Any] | Any = None,
    **options: Any,
) -> Model:
    """Make a model for the users and items of `interactions` and train it.

    Without options, this trains the best known model of the class (`DEFAULT_PRESETS`), as `ssept train` does.
    The constructor and `train_model` have the defaults of recommenders instead. The model keeps raw ids and histories
    in its attribute `known`: `save_pretrained` saves them, and `recommend` and `similar_items` take and return raw ids.

    Parameters
    ----------
    kind
        SSEPT or SASREC; `SSEPT.fit(interactions)` is `fit(SSEPT, interactions)`.
    interactions
        The events, with raw ids.
    preset
        Name of a preset in `ssept_ext.training.presets.PRESETS`, such as "sse-pt++"; None for the class's default.
    hold_out
        Whether to leave events out of training, for validation and for the test. False trains on all events, for a
        model in production, which can then not be evaluated. Recommendations use all events in either case.
    split
        Which events these are: see `Interactions.to_dataset`, with whose result for the same split the model is
        evaluated.
    verbose, checkpoint, callbacks
        See `ssept_ext.training.train_model`.
    seed
        Seed of parameters, batches and dropout. Torch's global generator is not used: other threads may train, too.
    n_workers
        Number of threads that draw batches.
    device
        Where to train; None for CUDA if there is a GPU, else the CPU.
    item_features
        What is known of the items, by raw id: `ssept_ext.ItemFeatures`, a mapping from ids to rows of numbers, such as
        embeddings of texts, or a data frame, whose first column holds ids. Items without any have features 0, with a
        warning. Other items in it are left out: `model.add_items` adds some later.
    options
        Changes to the preset: constructor arguments, except `item_num` and `user_num` (`conv_dims` defaults to the
        hidden size), and fields of `SamplerOptions`, `LoopOptions` and `TrainingOptions`.

    Raises
    ------
    TypeError
        If `interactions` has another type, or an option is unknown; names it.
    ValueError
        If an option is out of range, or there is no user to train or validate on.
    """
    if not isinstance(interactions, Interactions):
        raise TypeError(
            f"interactions must be Interactions, such as Interactions.from_dataframe makes, "
            f"got {type(interactions).__name__}"
        )
    hold_out = check_bool("hold_out", hold_out)
    dataset = interactions.to_dataset(hold_out=hold_out, split=split)
    recipe = Recipe.of(kind, preset, options, dataset.num_users)
    if recipe.loop.val_epoch and not hold_out:
        raise ValueError(f"val_epoch must be 0 without hold_out, got {recipe.loop.val_epoch}")
    features = None
    if item_features is not None:
        features = with_padding(ItemFeatures.of(item_features).rows_of(interactions.item_ids))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(check_at_least("seed", seed, 0))
    with torch.device("cpu"), _DrawingFrom(generator):
        sizes = len(interactions.item_ids), len(interactions.user_ids)
        model = recipe.make_model(*sizes, backend, features)
    model = model.to(device)
    with recipe.make_sampler(dataset, model.seq_max_len, seed, n_workers) as sampler:
        recipe.train(
            model,
            dataset,
            sampler,
            verbose=verbose,
            checkpoint=checkpoint,
            callbacks=callbacks,
            generator=generator,
        )
    model.known = KnownHistories.from_interactions(interactions)
    return model


class _DrawingFrom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes what is drawn on the CPU in this thread come from a generator, unless a call names one of its own."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        places = [x.device for x in args if isinstance(x, torch.Tensor)]
        places.append(torch.device(kwargs.get("device") or "cpu"))
        if kwargs.get("generator") or any(place.type != "cpu" for place in places):
            return func(*args, **kwargs)
        # rand, randn, randint and randperm take a generator in another overload only.
        takes_one = {"low": "low_generator"}.get(func._overloadname, "generator")
        if takes_one in func.overloadpacket.overloads():
            func = getattr(func.overloadpacket, takes_one)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)
