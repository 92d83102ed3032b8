"""Constructor arguments of the models, with their checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, cast

from ssept_ext.data.histories import MAX_ID
from ssept_ext.data.sse import SSE
from ssept_ext.utils.checks import check_at_least, shown
from ssept_ext.utils.options import (
    NOT_NEGATIVE,
    PROBABILITY,
    PROPER_FRACTION,
    Range,
    check_options,
    option,
)

MAX_HEAD_SIZE = 256
"""Largest head size that the attention kernels support."""

WIDTH = Range(1, 100_000)
"""Of an embedding or a layer."""
_IDS = Range(1, MAX_ID)

Architecture = Literal["recommenders", "original", "pre-ln", "gated"]

EmbeddingInit = Literal["uniform", "xavier"]


@dataclass(frozen=True, kw_only=True)
class SASRECConfig:
    """The constructor arguments of `SASREC`, checked.

    Raises
    ------
    ValueError
        If an argument is out of range; names the argument, its limit and the value.

    Examples
    --------
    >>> SASRECConfig(item_num=50, embedding_dim=16, conv_dims=[16, 16]).hidden_size
    16
    """

    item_num: int = field(metadata={"help": "items have the ids 1..item_num", "within": _IDS})
    seq_max_len: int = option(
        100, "T: the model sees this many of a user's last events", Range(1, 1_000_000)
    )
    num_blocks: int = option(2, "number of encoder blocks", Range(1, 1000))
    embedding_dim: int = option(100, "width of the embeddings", WIDTH, flag="item-embedding-dim")
    attention_dim: int = option(
        100, "ignored, as in recommenders: attention has the embeddings' width", Range(1)
    )
    attention_num_heads: int = option(1, "attention heads of a block", Range(1))
    conv_dims: Sequence[int] = option(
        (100, 100), "widths of the feed-forward layers; the second is the hidden size"
    )
    dropout_rate: float = option(0.5, "dropout probability", PROPER_FRACTION)
    l2_reg: float = option(
        0.0,
        "L2 regularisation: weight of half the squared norm of the embedding tables",
        NOT_NEGATIVE,
    )
    num_neg_test: int = option(
        100, "sampled negatives that each held-out item is ranked among", Range(1, 1_000_000)
    )
    architecture: Architecture = option(
        "recommenders",
        'layer norms per position ("recommenders"), or per feature and a second one before the '
        'feed-forward layers ("original", the authors\' code), with residuals that are not normalised '
        '("pre-ln"), and also with gates and SwiGLU ("gated", LiGR)',
    )
    embedding_init: EmbeddingInit = option(
        "uniform",
        'how tables start: uniform in ±0.05 ("uniform", as in recommenders), or Xavier-uniform by the '
        'shape of the whole table ("xavier", as in the authors\' code)',
    )
    position_bias: bool = option(
        False, "learned bias of each head's attention scores by distance: how many events back"
    )
    time_bias: bool = option(
        False,
        "learned bias of each head's attention scores by the time between the event to predict and each event seen, in "
        "128 logarithmic buckets (HSTU, Zhai et al., ICML 2024); needs data with times",
    )
    cosine_temperature: float | None = option(
        None,
        "score items by the cosine with the hidden state over this temperature, .05 in HSTU, instead of by "
        "inner product",
        Range(1e-3, 1e3),
    )
    learn_temperature: bool = option(
        False, "let training change cosine_temperature, where it starts from"
    )
    tie_item_embeddings: bool = option(
        True,
        "score items by the vectors by which they are read; without it, items have a second table of vectors, by which "
        "they are scored",
    )
    item_feature_dim: int = option(
        0,
        "F: width of item_features, whose learned projection is added to the items' vectors; 0 for none",
        Range(0, 100_000),
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
        if not isinstance(self.conv_dims, Iterable):
            raise ValueError(f"conv_dims must be two widths, got {shown(self.conv_dims)}")
        conv_dims = tuple(check_at_least("conv_dims", d, 1, 2 * WIDTH.high) for d in self.conv_dims)
        object.__setattr__(self, "conv_dims", conv_dims)  # the dataclass is frozen
        width, heads = self.hidden_size, self.attention_num_heads
        if len(conv_dims) != 2 or conv_dims[1] != width:
            raise ValueError(
                f"conv_dims must be two widths, the second the hidden size {width}, got {list(conv_dims)}"
            )
        if width % heads:
            raise ValueError(
                f"attention_num_heads must divide the hidden size {width}, got {heads}"
            )
        if width // heads > MAX_HEAD_SIZE:
            raise ValueError(
                f"attention_num_heads must make heads of at most {MAX_HEAD_SIZE} features, got "
                f"{heads} heads of {width // heads}"
            )
        if self.learn_temperature and self.cosine_temperature is None:
            raise ValueError(
                "learn_temperature must be False without a cosine_temperature, got True"
            )
        if self.item_feature_dim and not self.tie_item_embeddings:
            raise ValueError(
                "tie_item_embeddings must be True with item_features, whose projection is added to one table, got False"
            )
        _ = self.sse  # checks itself

    @property
    def sse(self) -> SSE:
        """The probabilities with which training replaces ids."""
        return SSE(
            item_prob=self.sse_item_prob,
            target_prob=self.sse_target_prob,
            joint=self.sse_joint,
            item_num=self.item_num,
        )

    @property
    def item_dim(self) -> int:
        """Di: width of an item vector."""
        return self.embedding_dim

    @property
    def hidden_size(self) -> int:
        """D: width of the hidden states, here Di."""
        return self.embedding_dim


@dataclass(frozen=True, kw_only=True)
class SSEPTConfig(SASRECConfig):
    """The constructor arguments of `SSEPT`, checked.

    Raises
    ------
    ValueError
        If an argument is out of range; names the argument, its limit and the value.

    Examples
    --------
    >>> config = SSEPTConfig(item_num=50, user_num=9, item_embedding_dim=16, user_embedding_dim=8, conv_dims=[24, 24])
    >>> config.hidden_size
    24
    """

    user_num: int = field(metadata={"help": "users have the ids 1..user_num", "within": _IDS})
    conv_dims: Sequence[int] = option(
        (200, 200), "widths of the feed-forward layers; the second is the hidden size"
    )
    user_embedding_dim: int | None = option(
        None, "Du: width of a user vector; embedding_dim if not given", WIDTH
    )
    item_embedding_dim: int | None = option(
        None, "Di: width of an item vector; embedding_dim if not given", WIDTH
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
        """The probabilities with which training replaces ids."""
        return replace(super().sse, user_prob=self.sse_user_prob, user_num=self.user_num)

    @property
    def user_dim(self) -> int:
        """Du: width of a user vector."""
        return cast("int", self.user_embedding_dim)

    @property
    def item_dim(self) -> int:
        """Di: width of an item vector."""
        return cast("int", self.item_embedding_dim)

    @property
    def hidden_size(self) -> int:
        """D = Di + Du: width of the hidden states."""
        return self.item_dim + self.user_dim


def config_from_arguments(
    kind: type[SASRECConfig], model: str, arguments: dict[str, Any]
) -> SASRECConfig:
    """Make a config from keyword arguments.

    Raises
    ------
    TypeError
        If an argument is unknown or missing; names it and the `model`.
    """
    known = {f.name: f for f in fields(kind)}
    for name in arguments:
        if name not in known:
            raise TypeError(f'{model} has no argument "{name}"; it takes {", ".join(known)}')
    for name, argument in known.items():
        if argument.default is MISSING and name not in arguments:
            raise TypeError(f"{model} needs the argument {name}")
    return kind(**arguments)
