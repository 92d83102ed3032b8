"""Makes model, sampler and training run from keyword arguments, for `fit`, the command line and benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from inspect import signature
from typing import Any, Generic, TypeVar

import torch

from ssept_ext._extension import Backend
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import IntArray
from ssept_ext.network.config import SSEPTConfig
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.sampling.sampler import WarpSampler
from ssept_ext.training.callbacks import Callback
from ssept_ext.training.loop import start_run, train_run
from ssept_ext.training.options import LoopOptions, TrainingOptions, check_together
from ssept_ext.training.presets import preset_options
from ssept_ext.training.run import History
from ssept_ext.utils.checks import check_at_least

Model = TypeVar("Model", bound=SequentialRecommender)

FROM_DATA = ("item_num", "user_num", "item_feature_dim")
"""Constructor arguments that are sizes of the data, and no options."""


@dataclass(frozen=True)
class Recipe(Generic[Model]):
    """All options to make and train a model, independent of the data.

    Examples
    --------
    >>> from ssept_ext import SSEPT
    >>> recipe = Recipe.of(SSEPT, "sse-pt", {"num_epochs": 20}, num_users=6040)
    >>> recipe.loop.num_epochs, recipe.training.schedule
    (20, 'cosine')
    """

    kind: type[Model]
    """The class of the model."""
    model: Mapping[str, Any]
    """Constructor arguments, except for those that come from the data, and `backend`."""
    sampler: SamplerOptions
    """Options of the sampler."""
    loop: LoopOptions
    """Options of `train_model` that recommenders has too."""
    training: TrainingOptions
    """The other options of `train_model`."""

    def __post_init__(self) -> None:
        check_together(self.loop, self.training)

    @classmethod
    def of(
        cls, kind: type[Model], preset: str | None, changes: Mapping[str, Any], num_users: int
    ) -> Recipe[Model]:
        """Start from a preset, by default the class's own, and change some of its options.

        Validations rank all items, unless `changes` has a `validation`. Unless it has `warmup_steps`, the preset's
        warm-up is cut to at most a tenth of all steps, whose number depends on `num_users`.

        Raises
        ------
        TypeError
            If an option is unknown; names it and the known ones.
        ValueError
            If an option is out of range, or there is no such preset for this class.
        """
        # By config: the name of a class that a user derives is not one of ours.
        base = "SSEPT" if issubclass(kind.config_class, SSEPTConfig) else "SASREC"
        options = {"validation": "full", **preset_options(base, preset)}
        recipe = cls.from_options(kind, {**options, **changes})
        if "warmup_steps" in changes:
            return recipe
        num_steps = recipe.loop.num_epochs * max(1, num_users // recipe.loop.batch_size)
        warmup_steps = min(recipe.training.warmup_steps, num_steps // 10)
        return replace(recipe, training=replace(recipe.training, warmup_steps=warmup_steps))

    @classmethod
    def from_options(cls, kind: type[Model], options: Mapping[str, Any]) -> Recipe[Model]:
        """Make a recipe of options; those that are not given have the defaults of their dataclasses."""
        groups = option_names(kind)
        known = [name for group in groups.values() for name in group]
        for name in options:
            if name in FROM_DATA:
                raise TypeError(f"{name} comes from the data and cannot be given")
            if name not in known:
                raise TypeError(
                    f'{kind.__name__} has no option "{name}"; there are {", ".join(known)}'
                )
        model, sampler, loop, training = (
            {name: options[name] for name in group if name in options} for group in groups.values()
        )
        defaults = {f.name: f.default for f in fields(kind.config_class)}
        model = {name: defaults[name] for name in groups["model"]} | model
        if "conv_dims" not in options:  # default to the hidden size
            width = hidden_size(kind, model)
            model["conv_dims"] = (width, width)
        return cls(
            kind, model, SamplerOptions(**sampler), LoopOptions(**loop), TrainingOptions(**training)
        )

    def options(self) -> dict[str, Any]:
        """Return all options, including defaults; `from_options` makes the same recipe from them."""
        return {**self.model, **asdict(self.sampler), **asdict(self.loop), **asdict(self.training)}

    def make_model(
        self, item_num: int, user_num: int, backend: Backend = "auto", item_features: Any = None
    ) -> Model:
        """Make a model for this number of items and users; SASREC ignores the users."""
        sizes: dict[str, Any] = {"item_num": item_num}
        if issubclass(self.kind.config_class, SSEPTConfig):
            sizes["user_num"] = user_num
        if item_features is not None:  # other classes need not know of them
            sizes["item_features"] = item_features
        return self.kind(**sizes, **self.model, backend=backend)

    def make_sampler(
        self,
        dataset: SASRecDataSet,
        seq_max_len: int,
        seed: int,
        n_workers: int = 1,
        users: IntArray | None = None,
    ) -> WarpSampler:
        """Make a sampler of the training events of some users of a data set, by default all."""
        with_times = bool(self.model["time_bias"])
        return WarpSampler(
            dataset.histories("train", users, with_times=with_times),
            dataset.usernum,
            dataset.itemnum,
            self.loop.batch_size,
            seq_max_len,
            n_workers,
            seed=seed,
            needs_negatives=self.training.loss != "softmax",
            with_times=with_times,
            **asdict(self.sampler),
        )

    def train(
        self,
        model: SequentialRecommender,
        dataset: SASRecDataSet,
        sampler: WarpSampler,
        *,
        verbose: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        generator: torch.Generator | None = None,
    ) -> History:
        """Train a model with the options of this recipe; see `ssept_ext.training.train_model`.

        Ctrl-C raises a KeyboardInterrupt, also without a checkpoint.
        """
        run = start_run(model, dataset, sampler, self.loop, self.training, callbacks, generator)
        train_run(run, dataset, verbose, checkpoint, callbacks)
        model.optimizer_state = run.optimizer_state()
        return run.history


def option_names(kind: type[SequentialRecommender]) -> dict[str, list[str]]:
    """Return the names of all options of a class, grouped as in `Recipe`."""
    return {
        "model": [f.name for f in fields(kind.config_class) if f.name not in FROM_DATA],
        "sampler": [f.name for f in fields(SamplerOptions)],
        "loop": [f.name for f in fields(LoopOptions)],
        "training": list(signature(TrainingOptions).parameters),
    }


def hidden_size(kind: type[SequentialRecommender], options: Mapping[str, Any]) -> int:
    """Return the hidden size of a model with these options, which must include the widths of its embeddings."""
    widths = [options["embedding_dim"]]
    if issubclass(kind.config_class, SSEPTConfig):
        given = [options[f"{side}_embedding_dim"] for side in ("item", "user")]
        widths = [widths[0] if width is None else width for width in given]
    return sum(check_at_least("embedding_dim", width, 1) for width in widths)
