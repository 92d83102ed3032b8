"""The constructor arguments of the models, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, cast

from ssept_ext.network.sse import SSE
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.options import (
    NOT_NEGATIVE,
    PROBABILITY,
    PROPER_FRACTION,
    Range,
    check_options,
    option,
)

MAX_HEAD_SIZE = 256
"""Of the attention kernels."""

Architecture = Literal["recommenders", "original"]


EmbeddingInit = Literal["uniform", "xavier"]


@dataclass(frozen=True, kw_only=True)
class SASRECConfig:
    """The constructor arguments of `SASREC`, checked.

    Raises
    ------
    ValueError
        If an argument is out of range; names argument, limit and value.
    """

    item_num: int = field(metadata={"help": "items have the ids 1..item_num", "within": Range(1)})
    seq_max_len: int = option(
        100, "T: number of a user's last events that the model sees", Range(1)
    )
    num_blocks: int = option(2, "number of encoder blocks", Range(1))
    embedding_dim: int = option(100, "width of the embeddings", Range(1))
    attention_dim: int = option(
        100, "ignored, as in recommenders: the width is that of the embeddings", Range(1)
    )
    attention_num_heads: int = option(1, "attention heads of a block", Range(1))
    conv_dims: Sequence[int] = option(
        (100, 100), "widths of the feed-forward layers; the second is the model's width"
    )
    dropout_rate: float = option(0.5, "dropout probability", PROPER_FRACTION)
    l2_reg: float = option(
        0.0, "weight of half the squared norm of the embedding tables in training", NOT_NEGATIVE
    )
    num_neg_test: int = option(
        100, "sampled negatives that each held-out item is ranked among", Range(1)
    )
    architecture: Architecture = option(
        "recommenders",
        'layer norms per position ("recommenders"), or per feature and a second one before the '
        'feed-forward layers ("original", the authors\' code)',
    )
    embedding_init: EmbeddingInit = option(
        "uniform",
        'how tables start: uniform in ±0.05 ("uniform", as in recommenders), or Xavier-uniform by the '
        'shape of the whole table ("xavier", as in the authors\' code)',
    )
    sse_item_prob: float = option(
        0.0, "SSE: probability of replacing an input item by a random one", PROBABILITY
    )
    sse_target_prob: float = option(
        0.0, "SSE: probability of replacing the item to predict", PROBABILITY
    )
    sse_joint: bool = option(
        False, "SSE: replace an input and its target together, with sse_item_prob"
    )

    def __post_init__(self) -> None:
        check_options(self)
        conv_dims = tuple(check_at_least("conv_dims", d, 1) for d in self.conv_dims)
        object.__setattr__(self, "conv_dims", conv_dims)  # the dataclass is frozen
        width, heads = self.hidden_size, self.attention_num_heads
        if len(conv_dims) != 2 or conv_dims[1] != width:
            raise ValueError(
                f"conv_dims must be two widths, the second the model's {width}, got {list(conv_dims)}"
            )
        if width % heads:
            raise ValueError(
                f"attention_num_heads must divide the model's width {width}, got {heads}"
            )
        if width // heads > MAX_HEAD_SIZE:
            raise ValueError(
                f"attention_num_heads must make heads of at most {MAX_HEAD_SIZE} features, got "
                f"{heads} heads of {width // heads}"
            )
        _ = self.sse  # checks itself

    @property
    def sse(self) -> SSE:
        """The ids that training replaces, and how often."""
        return SSE(0.0, self.sse_item_prob, self.sse_target_prob, self.sse_joint)

    @property
    def item_dim(self) -> int:
        """Di"""
        return self.embedding_dim

    @property
    def hidden_size(self) -> int:
        """D = Di + Du"""
        return self.embedding_dim


@dataclass(frozen=True, kw_only=True)
class SSEPTConfig(SASRECConfig):
    """The constructor arguments of `SSEPT`, checked."""

    user_num: int = field(metadata={"help": "users have the ids 1..user_num", "within": Range(1)})
    conv_dims: Sequence[int] = option(
        (200, 200), "widths of the feed-forward layers; the second is the model's width"
    )
    user_embedding_dim: int | None = option(
        None, "Du: width of a user vector; embedding_dim if not given", Range(1)
    )
    item_embedding_dim: int | None = option(
        None, "Di: width of an item vector; embedding_dim if not given", Range(1)
    )
    sse_user_prob: float = option(
        0.0,
        "SSE: probability of replacing the user of a sequence, as input and in scoring",
        PROBABILITY,
    )

    def __post_init__(self) -> None:
        for name in ("user_embedding_dim", "item_embedding_dim"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.embedding_dim)  # the dataclass is frozen
        super().__post_init__()

    @property
    def sse(self) -> SSE:
        """What is replaced while training."""
        return replace(super().sse, user_prob=self.sse_user_prob)

    @property
    def user_dim(self) -> int:
        """Du"""
        return cast("int", self.user_embedding_dim)

    @property
    def item_dim(self) -> int:
        """Di"""
        return cast("int", self.item_embedding_dim)

    @property
    def hidden_size(self) -> int:
        """D = Di + Du"""
        return self.item_dim + self.user_dim


def config_from_arguments(
    kind: type[SASRECConfig], model: str, arguments: dict[str, Any]
) -> SASRECConfig:
    """Make a config of keyword arguments; a TypeError names the `model` and an unknown or missing argument."""
    known = {f.name: f for f in fields(kind)}
    for name in arguments:
        if name not in known:
            raise TypeError(f'{model} has no argument "{name}"; it takes {", ".join(known)}')
    for name, argument in known.items():
        if argument.default is MISSING and name not in arguments:
            raise TypeError(f"{model} needs the argument {name}")
    return kind(**arguments)
