"""SASRec and SSE-PT, with the class, argument and parameter names of recommenders."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ssept_ext import losses, ops
from ssept_ext._extension import Backend, check_backend
from ssept_ext.layers import (
    Dropout,
    Encoder,
    EncoderLayer,
    LayerNormalization,
    Tokens,
)
from ssept_ext.packing import BatchPart, PackedBatch, pack
from ssept_ext.sse import SSE, replace_ids

if TYPE_CHECKING:
    from ssept_ext.callbacks import Callback
    from ssept_ext.data import SASRecDataSet
    from ssept_ext.evaluation import Exclude, FullMetrics, Split
    from ssept_ext.id_map import RawId
    from ssept_ext.interactions import Interactions
    from ssept_ext.known_histories import KnownHistories
    from ssept_ext.training import Sampler

Architecture = Literal["recommenders", "original"]
EmbeddingInit = Literal["uniform", "xavier"]
Array = Tensor | npt.NDArray[Any]
Self = TypeVar("Self", bound="SASREC")


@dataclass(frozen=True, kw_only=True)
class SASRECConfig:
    """The constructor arguments of `SASREC`, checked."""

    item_num: int
    """Items have the ids 1..item_num."""
    seq_max_len: int = 100
    """T: the model sees this many newest events."""
    num_blocks: int = 2
    embedding_dim: int = 100
    attention_dim: int = 100
    """Kept for compatibility and ignored, as in recommenders: the width is that of the embeddings."""
    attention_num_heads: int = 1
    conv_dims: Sequence[int] = (100, 100)
    """Widths of the feed-forward layers; the second must be the model's width."""
    dropout_rate: float = 0.5
    l2_reg: float = 0.0
    """Weight of ½‖table‖² summed over the embedding tables, applied by `train_model`."""
    num_neg_test: int = 100
    """Negatives that `evaluate` ranks each positive against."""
    architecture: Architecture = "recommenders"
    """"recommenders": layer norms per position, one a block. "original": the authors' TensorFlow code, layer
    norms per feature and a second one before the feed-forward layers."""
    embedding_init: EmbeddingInit = "uniform"
    """"uniform": tables start uniform in ±0.05, as in recommenders; "xavier": Xavier-uniform by the shape of the
    whole table, as in the authors' code."""
    sse_item_prob: float = 0.0
    """Probability of *replacing* an input item while training: see `ssept_ext.sse.SSE`, for all four."""
    sse_target_prob: float = 0.0
    """Probability of replacing a positive target."""
    sse_joint: bool = False
    """Replace an input and its target together, with sse_item_prob, as the authors' code does."""

    def __post_init__(self) -> None:
        for name in self._integers():
            _set(self, name, _positive_integer(name, getattr(self, name)))
        conv_dims = tuple(_positive_integer("conv_dims", d) for d in self.conv_dims)
        _set(self, "conv_dims", conv_dims)
        if len(conv_dims) != 2 or conv_dims[1] != self.width:
            raise ValueError(
                f"conv_dims must be two widths, the second the model's {self.width}, got {list(conv_dims)}"
            )
        if self.width % self.attention_num_heads:
            raise ValueError(
                f"attention_num_heads must divide the model's width {self.width}, "
                f"got {self.attention_num_heads}"
            )
        if self.width // self.attention_num_heads > 256:
            raise ValueError(
                f"attention_num_heads must make heads of at most 256 features, got "
                f"{self.attention_num_heads} heads of {self.width // self.attention_num_heads}"
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), got {self.dropout_rate}")
        if not (math.isfinite(self.l2_reg) and self.l2_reg >= 0):
            raise ValueError(f"l2_reg must be finite and at least 0, got {self.l2_reg}")
        for name, known in (("architecture", Architecture), ("embedding_init", EmbeddingInit)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f'{name} must be one of {get_args(known)}, got "{getattr(self, name)}"'
                )
        _ = self.sse  # checks itself

    def _integers(self) -> list[str]:
        return [f.name for f in fields(self) if f.type == "int"]

    @property
    def sse(self) -> SSE:
        """What is replaced while training."""
        return SSE(0.0, self.sse_item_prob, self.sse_target_prob, self.sse_joint)

    @property
    def item_width(self) -> int:
        """Di"""
        return self.embedding_dim

    @property
    def width(self) -> int:
        """D = Di + Du"""
        return self.embedding_dim


@dataclass(frozen=True, kw_only=True)
class SSEPTConfig(SASRECConfig):
    """The constructor arguments of `SSEPT`, checked."""

    user_num: int
    """Users have the ids 1..user_num."""
    conv_dims: Sequence[int] = (200, 200)
    user_embedding_dim: int | None = None
    """Du; embedding_dim where not given."""
    item_embedding_dim: int | None = None
    """Di; embedding_dim where not given."""
    sse_user_prob: float = 0.0
    """Probability of replacing the user of a sequence while training, as input and in scoring."""

    def __post_init__(self) -> None:
        for name in ("user_embedding_dim", "item_embedding_dim"):
            given = getattr(self, name)
            default = self.embedding_dim
            _set(self, name, default if given is None else _positive_integer(name, given))
        super().__post_init__()

    @property
    def sse(self) -> SSE:
        """What is replaced while training."""
        return replace(super().sse, user_prob=self.sse_user_prob)

    @property
    def user_width(self) -> int:
        """Du"""
        return cast("int", self.user_embedding_dim)

    @property
    def item_width(self) -> int:
        """Di"""
        return cast("int", self.item_embedding_dim)

    @property
    def width(self) -> int:
        """D = Di + Du"""
        return self.item_width + self.user_width


def _set(config: SASRECConfig, name: str, value: object) -> None:
    object.__setattr__(config, name, value)  # the dataclass is frozen


def _positive_integer(name: str, value: object) -> int:
    try:
        number = operator.index(cast("Any", value))
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return number


def _check_has_targets(batch: PackedBatch, need_negatives: bool) -> None:
    if batch.positives is None or (need_negatives and batch.negatives is None):
        raise ValueError(f"batch must have positives{' and negatives' if need_negatives else ''}")


def _config_from_arguments(
    kind: type[SASRECConfig], model: str, arguments: dict[str, Any]
) -> SASRECConfig:
    known = {f.name: f for f in fields(kind)}
    for name in arguments:
        if name not in known:
            raise TypeError(f'{model} has no argument "{name}"; it takes {", ".join(known)}')
    for name, argument in known.items():
        if argument.default is MISSING and name not in arguments:
            raise TypeError(f"{model} needs the argument {name}")
    return kind(**arguments)


class SASREC(nn.Module):
    """SASRec (Kang & McAuley, ICDM 2018), with the arguments of recommenders' class: see `SASRECConfig`.

    Two more arguments: `architecture`, and `backend` ("auto", "native" or "reference"; see
    `ssept_ext.set_backend`). A wrong argument is a TypeError or ValueError that names it.
    """

    config_class: ClassVar[type[SASRECConfig]] = SASRECConfig
    config: SASRECConfig
    user_embedding_layer: nn.Embedding | None
    known: KnownHistories | None = None
    """Raw ids and histories, of a model that `fit` made; `recommend` and `similar_items` then speak raw ids."""

    def __init__(self, *, backend: Backend = "auto", **arguments: Any) -> None:
        super().__init__()
        config = _config_from_arguments(self.config_class, type(self).__name__, arguments)
        self.config = config
        self._sse = config.sse
        self.backend = check_backend(backend)
        norm_len = config.seq_max_len if config.architecture == "recommenders" else None
        self.item_embedding_layer = nn.Embedding(config.item_num + 1, config.item_width, 0)
        self.user_embedding_layer = None
        if isinstance(config, SSEPTConfig):
            self.user_embedding_layer = nn.Embedding(config.user_num + 1, config.user_width, 0)
        self.positional_embedding_layer = nn.Embedding(config.seq_max_len, config.width)
        self.encoder = Encoder(
            [
                EncoderLayer(
                    norm_len,
                    config.width,
                    config.attention_num_heads,
                    config.conv_dims[0],
                    second_norm=config.architecture == "original",
                    backend=self.backend,
                )
                for _ in range(config.num_blocks)
            ]
        )
        self.layer_normalization = LayerNormalization(norm_len, config.width, self.backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: tables by `embedding_init` with row 0 zero, weights Xavier-uniform, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                if self.config.embedding_init == "xavier":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.uniform_(module.weight, -0.05, 0.05)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx] = 0
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def item_num(self) -> int:
        """Items have the ids 1..item_num."""
        return self.config.item_num

    @property
    def seq_max_len(self) -> int:
        """T: the model sees this many newest events."""
        return self.config.seq_max_len

    @property
    def num_neg_test(self) -> int:
        """Negatives that `evaluate` ranks each positive against."""
        return self.config.num_neg_test

    @property
    def l2_reg(self) -> float:
        """Weight of ½‖table‖² in training."""
        return self.config.l2_reg

    @property
    def dropout_rate(self) -> float:
        """Probability of dropping a feature or an attention weight in training."""
        return self.config.dropout_rate

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.item_embedding_layer.weight.device

    def embedding_tables(self) -> list[nn.Parameter]:
        """Return the tables that `l2_reg` applies to: items, users, positions."""
        tables = [self.item_embedding_layer.weight, self.positional_embedding_layer.weight]
        if self.user_embedding_layer is not None:
            tables.append(self.user_embedding_layer.weight)
        return cast("list[nn.Parameter]", tables)

    def sampled_logits(
        self, batch: PackedBatch, training: bool = True, seed: Tensor | None = None
    ) -> Tensor:
        """Score each token's positive and negatives.

        Parameters
        ----------
        batch : with positives and negatives; ids must be inside the tables
        training : False switches dropout and SSE off even where the module is in training mode
        seed : (1,) int64 on the model's device, of all that is drawn; from torch's global generator where not given

        Returns
        -------
        (N, 1 + K), the positives in column 0; 0 where the scored id is 0
        """
        _check_has_targets(batch, need_negatives=True)
        return self._sampled_logits(*self._encode_targets(batch, training, seed))[0]

    def training_loss(
        self,
        batch: PackedBatch,
        loss: losses.LossName = "bce",
        *,
        gbce_t: float = 0.75,
        negative_log_probs: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch: see `ssept_ext.losses`, by name.

        With a seed, a pure function of its arguments and the parameters that never waits for the device.

        Parameters
        ----------
        batch : with positives and negatives; ids must be inside the tables. "softmax" needs no negatives.
        gbce_t : calibration of "gbce"
        negative_log_probs : (item_num + 1,) of "sampled_softmax": how often each item is drawn as a negative; None for
            uniform negatives
        seed : (1,) int64 on the model's device, of dropout and SSE; drawn on the host from torch's global generator
            where not given
        """
        _check_has_targets(batch, need_negatives=loss != "softmax")
        batch, hidden = self._encode_targets(batch, training=True, seed=seed)
        assert batch.positives is not None
        if loss == "softmax":
            weight = self.item_embedding_layer.weight
            item_part = hidden[:, : weight.shape[1]]  # the user's part is the same for every item
            return losses.softmax(item_part, weight, batch.positives)
        logits, items = self._sampled_logits(batch, hidden)
        if loss == "gbce":
            return losses.gbce(logits, batch.positives, self.item_num, gbce_t)
        if loss == "bpr":
            return losses.bpr(logits, batch.positives)
        if loss == "sampled_softmax":
            log_q = None if negative_log_probs is None else negative_log_probs[items]
            return losses.sampled_softmax(logits, batch.positives, log_q)
        if loss == "bce":
            return losses.bce(logits, batch.positives)
        raise ValueError(f'loss must be one of {get_args(losses.LossName)}, got "{loss}"')

    def score(self, batch: PackedBatch, candidates: Tensor, user_part: bool = True) -> Tensor:
        """Score candidates as each sequence's next item, without dropout.

        Parameters
        ----------
        batch : B sequences; an empty one gets finite scores
        candidates : (B, C) int64 item ids
        user_part : False leaves out what is the same for all candidates of a sequence. It cannot change their
            order, but where it is large, adding it rounds close scores to ties.

        Returns
        -------
        (B, C) float32 or wider, also of a model in half precision: rounded scores would tie
        """
        hidden = self._newest_hidden(batch)
        # One row for each sequence, as if each had one token.
        one_each = torch.arange(hidden.shape[0] + 1, dtype=torch.int32, device=hidden.device)
        users = batch.users if user_part else None
        return self._score(hidden, candidates, users, one_each)

    def encode_newest(
        self, batch: PackedBatch, user_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Split scores for the next item into queries (B, Di) and the user's part of them (B,), without dropout.

        The score of item j is `queries @ E_item[j] + user_part`: the second is the same for all items. Both are
        float32 or wider.

        Parameters
        ----------
        batch : B sequences; an empty one gets finite scores
        user_vectors : (B, Du) of the type of the table, used instead of the table's rows
        """
        hidden = self._newest_hidden(batch, user_vectors)
        item_width = self.config.item_width
        queries, rest = hidden[:, :item_width].contiguous(), hidden[:, item_width:]
        table = self.user_embedding_layer
        if table is None:
            return queries, queries.new_zeros(len(queries))
        vectors = table(batch.users) if user_vectors is None else user_vectors
        return queries, (rest * vectors.to(hidden.dtype) * math.sqrt(rest.shape[1])).sum(1)

    def mean_user_vector(self) -> Tensor | None:
        """(Du,) mean over the users of the table, which stands for an unknown one; None where there is no table."""
        table = self.user_embedding_layer
        return None if table is None else table.weight[1:].mean(0)

    def forward(
        self, x: Mapping[str, Array], training: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score the positives and negatives of a padded batch, as recommenders' forward does.

        Parameters
        ----------
        x : "users" (B, 1), "input_seq", "positive" and "negative" (B, T) integers, NumPy or tensors, left-padded
            with 0. SASREC needs no "users".
        training : False switches dropout and SSE off even where the module is in training mode

        Returns
        -------
        positive logits (B·T, 1), negative logits (B·T, 1), and (B·T,) float 1 where a position has a target. The
        logits are exactly 0 elsewhere.

        Raises
        ------
        ValueError, IndexError
            If an array has the wrong type or shape, or an id is outside its table; names it.
        """
        seq = self._ids(x, "input_seq", self.item_num)
        positive = self._ids(x, "positive", self.item_num, like=seq)
        negative = self._ids(x, "negative", self.item_num, like=seq)
        is_target = (positive != 0) & (seq != 0)
        batch = self._pack(x, "users", seq, positive, torch.where(is_target, negative, 0))
        logits = self.sampled_logits(batch, training)
        padded = logits.new_zeros(*seq.shape, 2).masked_scatter((seq != 0).unsqueeze(-1), logits)
        positive_logits, negative_logits = padded.view(-1, 1, 2).unbind(2)
        return positive_logits, negative_logits, is_target.view(-1).to(logits.dtype)

    def loss_function(self, pos_logits: Tensor, neg_logits: Tensor, istarget: Tensor) -> Tensor:
        """Binary cross-entropy of what `forward` returns, averaged over the positions that have a target."""
        logits = torch.cat([pos_logits.view(-1, 1), neg_logits.view(-1, 1)], 1)
        return losses.bce(logits, istarget.view(-1))

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Array]) -> Tensor:
        """Score candidates as the next item of padded sequences.

        Parameters
        ----------
        inputs : "user" (B,) or (B, 1), "input_seq" (B, T), "candidate" (B, C) integers, NumPy or tensors. SASREC
            needs no "user". Rows of padding only get finite scores.

        Returns
        -------
        (B, C), without gradient and without dropout

        Raises
        ------
        ValueError, IndexError
            As `forward`.
        """
        seq = self._ids(inputs, "input_seq", self.item_num)
        candidates = self._ids(inputs, "candidate", self.item_num)
        if candidates.shape[0] != seq.shape[0]:
            raise ValueError(
                f"candidate must have {seq.shape[0]} rows, as input_seq has, got {candidates.shape[0]}"
            )
        return self.score(self._pack(inputs, "user", seq), candidates)

    def create_combined_dataset(
        self,
        u: Sequence[int],
        seq: Sequence[Sequence[int]],
        pos: Sequence[Sequence[int]],
        neg: Sequence[Sequence[int]],
    ) -> tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
        """Turn a sampler's lists into `forward`'s input, left-padded to T; longer rows keep their newest T.

        Returns
        -------
        The inputs, and the (2·B·T, 1) labels that recommenders' loss once took: ones, then zeros.
        """
        inputs = {
            "users": np.asarray(u, np.int64).reshape(-1, 1),
            "input_seq": self._left_pad(seq),
            "positive": self._left_pad(pos),
            "negative": self._left_pad(neg),
        }
        labels = np.repeat(np.array([1, 0]), inputs["input_seq"].size)
        return inputs, labels[:, None]

    def train_model(
        self,
        dataset: SASRecDataSet,
        sampler: Sampler,
        num_epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float = 0.001,
        val_epoch: int = 0,
        eval_batch_size: int = 256,
        verbose: bool = True,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> dict[str, list[float]]:
        """Train on the sampler's batches: see `ssept_ext.training.train_model`.

        More keywords, such as `loss="gbce"`: those of `ssept_ext.training.TrainingOptions`.
        """
        from ssept_ext.training import TrainingOptions, train_model  # it imports this module

        sizes = (num_epochs, batch_size, learning_rate, val_epoch, eval_batch_size)
        return train_model(
            self,
            dataset,
            sampler,
            *sizes,
            verbose,
            options=TrainingOptions(**options),
            checkpoint=checkpoint,
            callbacks=callbacks,
        )

    def evaluate(
        self,
        dataset: SASRecDataSet,
        seed: int | None = None,
        eval_batch_size: int = 256,
        exclude: Exclude = "train",
    ) -> tuple[float, float]:
        """Return NDCG@10 and HR@10 on the test items: see `ssept_ext.evaluation.evaluate`."""
        from ssept_ext.evaluation import evaluate

        return evaluate(self, dataset, seed, eval_batch_size, exclude)

    def evaluate_valid(
        self,
        dataset: SASRecDataSet,
        seed: int | None = None,
        eval_batch_size: int = 256,
        exclude: Exclude = "train",
    ) -> tuple[float, float]:
        """Return NDCG@10 and HR@10 on the validation items: see `ssept_ext.evaluation.evaluate`."""
        from ssept_ext.evaluation import evaluate_valid

        return evaluate_valid(self, dataset, seed, eval_batch_size, exclude)

    def evaluate_full(
        self,
        dataset: SASRecDataSet,
        ks: Sequence[int] = (1, 5, 10, 20),
        exclude_seen: bool = True,
        split: Split = "test",
        eval_batch_size: int = 256,
    ) -> FullMetrics:
        """Return metrics of ranking the whole catalogue: see `ssept_ext.evaluation.evaluate_full`."""
        from ssept_ext.evaluation import evaluate_full

        return evaluate_full(self, dataset, ks, exclude_seen, split, eval_batch_size)

    def recommend(
        self,
        histories: SASRecDataSet | Mapping[Any, Sequence[Any]] | None = None,
        users: Sequence[Any] | None = None,
        k: int = 10,
        *,
        candidates: Sequence[Any] | None = None,
        exclude_seen: bool = True,
        with_scores: bool = True,
        batch_size: int = 256,
    ) -> Any:
        """Return each user's best items: raw ids in, a data frame out, if the model knows them (`fit` makes such).

        Then see `ssept_ext.recommendation.recommend_raw`. On other models, and for a `SASRecDataSet`, ids are the
        table's numbers, `histories` is required, and the result is `Recommendations`: see
        `ssept_ext.recommendation.recommend`.
        """
        from ssept_ext.data import SASRecDataSet
        from ssept_ext.recommendation import recommend, recommend_raw

        options: dict[str, Any] = {
            "candidates": candidates,
            "exclude_seen": exclude_seen,
            "batch_size": batch_size,
        }
        if self.known is not None and not isinstance(histories, SASRecDataSet):
            return recommend_raw(self, histories, users, k, with_scores=with_scores, **options)
        if histories is None:
            raise ValueError(
                f"histories are needed, as this model knows none: {type(self).__name__}.fit makes one that does"
            )
        if not with_scores:
            raise ValueError("with_scores must be True for ids that are numbers, got False")
        return recommend(self, histories, users, k, **options)

    def similar_items(self, items: Sequence[Any], k: int = 10) -> Any:
        """Return the items closest to each of `items` by the cosine of their vectors, itself left out.

        A model that `fit` made takes raw ids and returns a data frame: see
        `ssept_ext.recommendation.similar_items_raw`. Others take numbers and return `Recommendations`: see
        `ssept_ext.recommendation.similar_items`.
        """
        from ssept_ext.recommendation import similar_items, similar_items_raw

        return (similar_items if self.known is None else similar_items_raw)(self, items, k)

    @classmethod
    def fit(cls: type[Self], interactions: Interactions, **options: Any) -> Self:
        """Train a model on events under raw ids: see `ssept_ext.fitting.fit`."""
        from ssept_ext.fitting import fit

        return fit(cls, interactions, **options)

    def save_pretrained(self, folder: str | os.PathLike[str], *, histories: bool = True) -> None:
        """Write the model with its raw ids and histories: see `ssept_ext.checkpoint.save_checkpoint`."""
        from ssept_ext.checkpoint import save_checkpoint

        save_checkpoint(self, folder, histories=histories)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        folder: str | os.PathLike[str],
        *,
        backend: Backend = "auto",
        device: torch.device | str = "cpu",
    ) -> Self:
        """Read what `save_pretrained` wrote: see `ssept_ext.checkpoint.load_checkpoint`.

        Raises
        ------
        ValueError
            If `folder` holds a model of another class; `SASREC` takes an SSEPT, which is one.
        """
        from ssept_ext.checkpoint import load_checkpoint

        model = load_checkpoint(folder, backend, device)
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    @classmethod
    def from_recommenders(
        cls: type[Self],
        path: str | os.PathLike[str],
        *,
        attention_num_heads: int,
        **arguments: Any,
    ) -> Self:
        """Read a state dict of recommenders' class: see `ssept_ext.checkpoint.load_recommenders`."""
        from ssept_ext.checkpoint import load_recommenders

        return cast("Self", load_recommenders(cls, path, attention_num_heads, **arguments))

    def item_vectors(self) -> npt.NDArray[np.floating]:
        """(item_num, Di), for an index by inner product: see `ssept_ext.export.item_vectors`."""
        from ssept_ext.export import item_vectors

        return item_vectors(self)

    def user_state(
        self, history: Sequence[RawId], user: RawId | None = None
    ) -> npt.NDArray[np.floating]:
        """(Di,), what to ask that index for: see `ssept_ext.export.user_state`."""
        from ssept_ext.export import user_state

        return user_state(self, history, user)

    def _encode_targets(
        self, batch: PackedBatch, training: bool, seed: Tensor | None
    ) -> tuple[PackedBatch, Tensor]:
        """A batch with targets as it is trained on, ids replaced by SSE, and its hidden states, (N, D)."""
        sse, drop = self._sse, Dropout.none()
        if training and self.training and (sse.is_active or self.dropout_rate > 0):
            if seed is None:
                seed = torch.randint(2**63 - 1, (1,)).to(self.device)
            if sse.is_active:
                users = self.config.user_num if isinstance(self.config, SSEPTConfig) else 0
                batch = replace_ids(batch, sse, users, self.item_num, seed)
            if self.dropout_rate > 0:
                # Rows are counted in the part: without a seed of its own it would drop what others drop.
                own = seed + batch.process if isinstance(batch, BatchPart) else seed
                drop = Dropout(self.dropout_rate, own)
        return batch, self._encode(batch, drop, newest_only=False)

    def _sampled_logits(self, batch: PackedBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 1 + K) and the items that they are of, the positives in column 0."""
        assert batch.positives is not None
        assert batch.negatives is not None
        items = torch.cat([batch.positives.unsqueeze(1), batch.negatives], 1)
        return self._score(hidden, items, batch.users, batch.cu_seqlens), items

    def _encode(
        self,
        batch: PackedBatch,
        drop: Dropout,
        newest_only: bool,
        user_vectors: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, (N, D), or with `newest_only` (B, D)."""
        table, users = None, None
        if self.user_embedding_layer is not None:
            table, users = self.user_embedding_layer.weight, batch.users
            if user_vectors is not None:  # a table of their own, for this batch
                table = torch.cat([user_vectors.new_zeros(1, user_vectors.shape[1]), user_vectors])
                users = torch.arange(1, len(table), device=table.device)
        x = ops.user_item_embedding(
            self.item_embedding_layer.weight,
            table,
            self.positional_embedding_layer.weight,
            batch.items,
            users,
            batch.positions,
            batch.cu_seqlens,
            drop.p,
            drop.seed,
            backend=self.backend,
        )
        tokens = Tokens(x, batch.positions, batch.cu_seqlens, batch.max_seqlen)
        tokens = self.encoder(tokens, drop, 1, newest_only)
        return cast("Tensor", self.layer_normalization(tokens))

    def _newest_hidden(self, batch: PackedBatch, user_vectors: Tensor | None = None) -> Tensor:
        """Hidden states after the last tokens, (B, D), in float32 or wider."""
        hidden = self._encode(batch, Dropout.none(), True, user_vectors)
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    def _score(
        self, hidden: Tensor, items: Tensor, users: Tensor | None, cu_seqlens: Tensor
    ) -> Tensor:
        """Logits of (N, K) items for (N, D) hidden states; without users their item part alone.

        In the wider of the states' and the tables' types.
        """
        table = self.user_embedding_layer if users is not None else None
        if users is None:
            hidden = hidden[:, : self.config.item_width]
        item_weight = self.item_embedding_layer.weight
        wide = torch.promote_types(hidden.dtype, item_weight.dtype)
        return ops.sampled_logits(
            hidden.to(wide),
            item_weight.to(wide),
            None if table is None else table.weight.to(wide),
            items,
            None if table is None else users,
            cu_seqlens,
            backend=self.backend,
        )

    def _pack(
        self,
        x: Mapping[str, Array],
        users_key: str,
        seq: Tensor,
        positive: Tensor | None = None,
        negative: Tensor | None = None,
    ) -> PackedBatch:
        if seq.shape[1] > self.seq_max_len:
            raise ValueError(
                f"input_seq has {seq.shape[1]} columns, more than seq_max_len {self.seq_max_len}"
            )
        users = torch.zeros(seq.shape[0], dtype=torch.int64, device=self.device)
        if isinstance(self.config, SSEPTConfig):
            users = self._ids(x, users_key, self.config.user_num).reshape(-1)
            if users.shape[0] != seq.shape[0]:
                raise ValueError(
                    f"{users_key} must have {seq.shape[0]} rows, as input_seq has, got {users.shape[0]}"
                )
        batch = pack(users, seq, positive, negative)
        # The newest event is at seq_max_len - 1, also where fewer columns are given.
        return replace(batch, positions=batch.positions + (self.seq_max_len - seq.shape[1]))

    def _ids(
        self, x: Mapping[str, Array], name: str, largest: int, like: Tensor | None = None
    ) -> Tensor:
        """One array of ids, checked and on the model's device; users may lack their second dimension."""
        if name not in x:
            raise ValueError(f'the input lacks "{name}"; it has {", ".join(x)}')
        ids = torch.as_tensor(x[name])
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"{name} must hold integers, got {ids.dtype}")
        if ids.dim() == 1 and name in ("user", "users"):
            ids = ids[:, None]
        if ids.dim() != 2 or (name in ("user", "users") and ids.shape[1] != 1):
            raise ValueError(f"{name} must have two dimensions, got shape {tuple(ids.shape)}")
        if like is not None and ids.shape != like.shape:
            raise ValueError(
                f"{name} must have shape {tuple(like.shape)}, as input_seq has, got {tuple(ids.shape)}"
            )
        ids = ids.to(torch.int64)
        if ids.numel():
            low, high = (int(v) for v in torch.aminmax(ids))
            if low < 0 or high > largest:
                raise IndexError(
                    f"{name} has id {low if low < 0 else high}, outside its table of "
                    f"{largest + 1} rows (0..{largest})"
                )
        return ids.to(self.device)

    def _left_pad(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
        padded = np.zeros((len(rows), self.seq_max_len), np.int64)
        for out, row in zip(padded, rows, strict=True):
            newest = row[-self.seq_max_len :]
            out[self.seq_max_len - len(newest) :] = newest
        return padded


class SSEPT(SASREC):
    """SSE-PT (Wu et al., RecSys 2020), with the arguments of recommenders' class: see `SSEPTConfig`.

    Two more arguments, as `SASREC`. It differs from recommenders' class on purpose: masks come from the ids; logits
    at padding are exactly 0; `item_embedding_dim` may differ from `embedding_dim`; ties count against the model.
    """

    config_class = SSEPTConfig
    config: SSEPTConfig
    user_embedding_layer: nn.Embedding

    @property
    def user_num(self) -> int:
        """Users have the ids 1..user_num."""
        return self.config.user_num
