"""From keywords to a model, a sampler and a training: what `fit`, the command line and benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from inspect import signature
from typing import Any, Generic, TypeVar

from ssept_ext._extension import Backend
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.network.config import SSEPTConfig
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.sampling.sampler import WarpSampler
from ssept_ext.training.callbacks import Callback
from ssept_ext.training.loop import train_model
from ssept_ext.training.options import LoopOptions, TrainingOptions, check_together
from ssept_ext.training.presets import preset_options
from ssept_ext.training.run import History

Model = TypeVar("Model", bound=SequentialRecommender)

_COUNTED = ("item_num", "user_num")


@dataclass(frozen=True)
class Recipe(Generic[Model]):
    """How to make and train a model, whatever the data.

    `Recipe.of(SSEPT, "sse-pt", {"num_epochs": 20})` begins with a preset and changes it.
    """

    kind: type[Model]
    model: Mapping[str, Any]
    """Arguments of the constructor, without `item_num`, `user_num` and `backend`."""
    sampler: SamplerOptions
    loop: LoopOptions
    training: TrainingOptions

    def __post_init__(self) -> None:
        check_together(self.loop, self.training)

    @classmethod
    def of(
        cls, kind: type[Model], preset: str | None, changes: Mapping[str, Any], num_users: int
    ) -> Recipe[Model]:
        """Begin with a preset, by default the class's own, and change some of its options.

        A preset's warm-up is cut to a tenth of a short training, which depends on the number of users.

        Raises
        ------
        TypeError
            If an option is unknown; names it and those there are.
        ValueError
            If an option is out of range, or there is no such preset for this class.
        """
        options = preset_options(kind.__name__, preset)
        recipe = cls.from_options(kind, {**options, **changes})
        if "warmup_steps" in changes:
            return recipe
        num_steps = recipe.loop.num_epochs * max(1, num_users // recipe.loop.batch_size)
        warmup_steps = min(recipe.training.warmup_steps, num_steps // 10)
        return replace(recipe, training=replace(recipe.training, warmup_steps=warmup_steps))

    @classmethod
    def from_options(cls, kind: type[Model], options: Mapping[str, Any]) -> Recipe[Model]:
        """Sort options by what they belong to; what is not given has the default of its dataclass."""
        groups = option_names(kind)
        known = [name for group in groups.values() for name in group]
        for name in options:
            if name in _COUNTED:
                raise TypeError(f"{name} is that of the data and cannot be given")
            if name not in known:
                raise TypeError(
                    f'{kind.__name__} has no option "{name}"; there are {", ".join(known)}'
                )
        model, sampler, loop, training = (
            {name: options[name] for name in group if name in options} for group in groups.values()
        )
        model = _defaults(kind) | model
        if "conv_dims" not in options:  # as wide as the model
            width = hidden_size(kind, model)
            model["conv_dims"] = (width, width)
        return cls(
            kind,
            model,
            SamplerOptions(**sampler),
            LoopOptions(**loop),
            TrainingOptions(**training),
        )

    def options(self) -> dict[str, Any]:
        """All options, defaults included: `from_options` makes the same recipe of them."""
        return {
            **self.model,
            **asdict(self.sampler),
            **asdict(self.loop),
            **asdict(self.training),
        }

    def make_model(self, item_num: int, user_num: int, backend: Backend = "auto") -> Model:
        """Make the model for so many items and users; SASREC needs no users."""
        sizes: dict[str, Any] = {"item_num": item_num}
        if issubclass(self.kind.config_class, SSEPTConfig):
            sizes["user_num"] = user_num
        return self.kind(**sizes, **self.model, backend=backend)

    def make_sampler(
        self, dataset: SASRecDataSet, seq_max_len: int, seed: int, n_workers: int = 1
    ) -> WarpSampler:
        """Make the sampler of a data set's training events."""
        return WarpSampler(
            dataset.histories("train"),
            dataset.usernum,
            dataset.itemnum,
            self.loop.batch_size,
            seq_max_len,
            n_workers,
            seed=seed,
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
    ) -> History:
        """Train as `ssept_ext.training.train_model` does."""
        return train_model(
            model,
            dataset,
            sampler,
            **asdict(self.loop),
            verbose=verbose,
            checkpoint=checkpoint,
            callbacks=callbacks,
            **asdict(self.training),
        )


def option_names(kind: type[SequentialRecommender]) -> dict[str, list[str]]:
    """The names of all options of a class, by what they belong to."""
    return {
        "model": [f.name for f in fields(kind.config_class) if f.name not in _COUNTED],
        "sampler": [f.name for f in fields(SamplerOptions)],
        "loop": [f.name for f in fields(LoopOptions)],
        "training": list(signature(TrainingOptions).parameters),
    }


def hidden_size(kind: type[SequentialRecommender], options: Mapping[str, Any]) -> int:
    """Width of the model of a class that these options, which must have its embeddings' widths, make."""
    width: int = options["embedding_dim"]
    if not issubclass(kind.config_class, SSEPTConfig):
        return width
    given = (options[f"{noun}_embedding_dim"] for noun in ("item", "user"))
    return sum(width if value is None else value for value in given)


def _defaults(kind: type[SequentialRecommender]) -> dict[str, Any]:
    """The defaults of the constructor's arguments."""
    return {f.name: f.default for f in fields(kind.config_class) if f.name not in _COUNTED}
