"""SASRec as in recommenders, with what its users call, assign and override."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssept_ext import distributed, models
from ssept_ext._extension import Backend
from ssept_ext.data.packed import PackedBatch, pack
from ssept_ext.network import encoder, layers
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.layers import Tokens
from ssept_ext.network.padded import is_ours, pad_sequences
from ssept_ext.recommenders.util import as_dataset, warn_of_ignored
from ssept_ext.training.callbacks import Progress
from ssept_ext.training.run import History
from ssept_ext.training.step import draw_seeds
from ssept_ext.utils.checks import shown

__all__ = ["SASREC", "Encoder", "LayerNormalization", "pad_sequences"]


class Encoder(encoder.Encoder):
    """The encoder, which takes padded hidden states as well as packed ones.

    Its arguments are recommenders': num_layers, seq_max_len, embedding_dim, attention_dim (ignored), num_heads,
    conv_dims and dropout_rate.
    """

    def __init__(self, *sizes: Any, **named: Any) -> None:
        config, backend = _config_of(_encoder_config, sizes, named)
        super().__init__(config, backend)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Any, *args: Any, **arguments: Any) -> Any:  # type: ignore[override]
        """Encode `Tokens` as `ssept_ext` does, or (B, T, D) hidden states as recommenders does.

        Parameters
        ----------
        x, training, mask
            (B, T, D) hidden states of T = `seq_max_len` columns; whether to drop, if the module is in training mode;
            and (B, T, 1), 0 at padding, which nothing attends to.

        Returns
        -------
        Tensor
            (B, T, D), 0 at padding.
        """
        encode = super().forward if isinstance(x, Tokens) else self._encode_padded
        return encode(x, *args, **arguments)

    def _encode_padded(self, x: Tensor, training: bool, mask: Tensor) -> Tensor:
        _check_columns(x, self.enc_layers[0].layer_normalization.gamma)  # type: ignore[union-attr,arg-type]
        real = mask.reshape(x.shape[:2]) != 0
        batch = pack(torch.zeros(len(x)), real.long())
        drop = layers.NO_DROPOUT
        if training and self.training and self.dropout.p:
            drop = layers.Dropout(self.dropout.p, draw_seeds(1).to(x.device))
        tokens = Tokens(x[real], batch.positions, batch.cu_seqlens, batch.max_seqlen)
        return _padded(super().forward(tokens, drop, 1, False).x, batch, x.shape[1])


class LayerNormalization(layers.LayerNormalization):
    """The layer norm, which takes padded hidden states as well as packed ones.

    Its arguments are recommenders': seq_max_len, embedding_dim and epsilon, which must be 1e-8.
    """

    def __init__(self, *sizes: Any, **named: Any) -> None:
        super().__init__(*_config_of(_norm_config, sizes, named))

    def forward(self, x: Tokens | Tensor) -> Tensor:
        """Normalise `Tokens`, or (B, T, D) hidden states of T = `seq_max_len` columns."""
        if isinstance(x, Tokens):
            return super().forward(x)
        _check_columns(x, self.gamma)
        batch = pack(torch.zeros(len(x)), x.new_ones(x.shape[:2], dtype=torch.int64))
        tokens = Tokens(x.flatten(0, 1), batch.positions, batch.cu_seqlens, batch.max_seqlen)
        return super().forward(tokens).view_as(x)


def _check_columns(x: Tensor, gamma: Tensor) -> None:
    """Check hidden states against gamma, which has a row for each column in recommenders' architecture."""
    if gamma.dim() == 2 and x.shape[1] != len(gamma):
        raise ValueError(f"x must have seq_max_len {len(gamma)} columns, got {x.shape[1]}")


def _config_of(
    make: Callable[..., SASRECConfig], sizes: tuple[Any, ...], named: dict[str, Any]
) -> tuple[SASRECConfig, Backend]:
    """Return the arguments of a layer of ours: given as they are, or made from those of recommenders."""
    if sizes and isinstance(sizes[0], SASRECConfig):
        config, backend = sizes
        return config, backend
    return make(*sizes, **named), "auto"


def _encoder_config(
    num_layers: int,
    seq_max_len: int,
    embedding_dim: int,
    attention_dim: int,
    num_heads: int,
    conv_dims: Sequence[int],
    dropout_rate: float,
) -> SASRECConfig:
    return SASRECConfig(
        item_num=1,
        seq_max_len=seq_max_len,
        num_blocks=num_layers,
        embedding_dim=embedding_dim,
        attention_num_heads=num_heads,
        conv_dims=conv_dims,
        dropout_rate=dropout_rate,
    )


def _norm_config(seq_max_len: int, embedding_dim: int, epsilon: float) -> SASRECConfig:
    if epsilon != 1e-8:
        raise ValueError(f"epsilon must be 1e-8, got {epsilon}")
    return _encoder_config(1, seq_max_len, embedding_dim, 1, 1, [1, embedding_dim], 0.0)


def config_attribute(name: str, writable: bool = False) -> Any:
    """Make an attribute of a model that is a field of its config, a list where that has a tuple."""

    def get(model: SASREC) -> Any:
        value = getattr(model.config, name)
        return list(value) if isinstance(value, tuple) else value

    def assign(model: SASREC, value: Any) -> None:
        model.config = replace(model.config, **{name: value})

    return property(get, assign if writable else None)


class SASREC(models.SASREC):
    """`ssept_ext.SASREC` with the methods and attributes of recommenders' class.

    A subclass may override `forward`, `loss_function`, `create_combined_dataset` and `predict`: training and evaluation
    then call them, with padded tensors, which is slower. Keywords that only SSEPT has are ignored, and so are unknown
    ones, with a warning.

    Attributes
    ----------
    num_neg_test, l2_reg, dropout_rate
        May be assigned; all other arguments of the constructor are attributes that may only be read.
    dropout_layer
        The dropout of the model, of which there is one: assigning its p changes `dropout_rate`.

    Examples
    --------
    >>> model = SASREC(item_num=50, seq_max_len=8, embedding_dim=16, conv_dims=[16, 16], user_num=9)
    >>> model.num_neg_test = 20
    >>> model.num_neg_test, model.conv_dims
    (20, [16, 16])
    """

    encoder: Encoder
    encoder_class = Encoder
    norm_class = LayerNormalization
    uncalled: ClassVar = {
        "embedding": ("these", ["forward", "predict"]),
        "evaluate_valid": ("predict", ["train_model"]),
    }

    num_blocks = config_attribute("num_blocks")
    embedding_dim = config_attribute("embedding_dim")
    attention_dim = config_attribute("attention_dim")
    attention_num_heads = config_attribute("attention_num_heads")
    conv_dims = config_attribute("conv_dims")
    num_neg_test = config_attribute("num_neg_test", writable=True)
    l2_reg = config_attribute("l2_reg", writable=True)

    def __init__(
        self, *, backend: Backend = "auto", item_features: None = None, **arguments: Any
    ) -> None:
        of_either = {field.name for field in fields(SSEPTConfig)}
        warn_of_ignored(type(self), arguments.keys() - of_either)
        own = arguments.keys() & {field.name for field in fields(self.config_class)}
        if item_features is not None or arguments.get("item_feature_dim"):
            raise ValueError(
                f"item_features must be None for the {type(self).__name__} of ssept_ext.recommenders, whose method "
                f"embedding knows nothing of them: use that of ssept_ext"
            )
        if not arguments.get("tie_item_embeddings", True):
            raise ValueError(
                f"tie_item_embeddings must be True for the {type(self).__name__} of ssept_ext.recommenders, whose "
                f"items have one table, got {shown(arguments['tie_item_embeddings'])}: use that of ssept_ext"
            )
        super().__init__(backend=backend, **{name: arguments[name] for name in own})
        self.dropout_layer = self.encoder.dropout

    @property
    def dropout_rate(self) -> float:
        """Probability of dropping a feature or an attention weight in training."""
        return self.dropout_layer.p

    @dropout_rate.setter
    def dropout_rate(self, value: float) -> None:
        self.config = replace(self.config, dropout_rate=value)
        self.dropout_layer.p = value

    def _init_weights(self) -> None:  # subclasses call it after adding layers
        self.reset_parameters()

    def embedding(self, input_seq: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the vectors of padded sequences (B, T).

        Returns
        -------
        tuple[Tensor, Tensor]
            (B, T, Di) item vectors times √Di, and (B, T, D) vectors of the columns.
        """
        items = self.item_embedding_layer(input_seq) * math.sqrt(self.config.item_dim)
        columns = torch.arange(input_seq.shape[1], device=input_seq.device)
        return items, self.positional_embedding_layer(columns.expand_as(input_seq))

    def predict(self, inputs: Any) -> Tensor:
        """Score candidates: see `ssept_ext.SASREC.predict`."""
        with torch.no_grad():
            return super().score(*self._to_score(inputs))

    def train(self, mode: bool = True, *args: Any, **arguments: Any) -> SASREC:
        """Set training mode, as in PyTorch.

        Raises
        ------
        TypeError
            If it is called as in recommenders' TensorFlow release, where it trained the model.
        """
        if args or arguments or not isinstance(mode, bool):
            raise TypeError(
                "model.train(mode) sets the mode, and does not train as in recommenders' TensorFlow release: call "
                "model.train_model(dataset, sampler, num_epochs=..., batch_size=..., learning_rate=..., val_epoch=...)"
            )
        return super().train(mode)

    def train_model(
        self,
        dataset: Any,
        sampler: Any,
        num_epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float = 0.001,
        val_epoch: int = 0,
        eval_batch_size: int = 256,
        verbose: bool = True,
        **options: Any,
    ) -> History:
        """Train on the GPU, if there is one: see `ssept_ext.training.train_model`.

        Parameters
        ----------
        dataset
            A data set, or any object with its attributes `usernum`, `itemnum`, `user_train` and `user_valid`.
        num_epochs
            May be 0: nothing is trained then.
        verbose
            Whether to print a line for each epoch to stdout.
        sampler, batch_size, learning_rate, val_epoch, eval_batch_size, options
            See `ssept_ext.training.train_model`.
        """
        if torch.cuda.is_available() and self.device.type != "cuda":
            self.to("cuda")
        if num_epochs == 0:
            return {"loss": [], "seconds": [], "val_ndcg": [], "val_hr": []}
        callbacks = [_print_epoch] if verbose else []  # the same in all processes
        history = super().train_model(
            as_dataset(dataset),
            sampler,
            num_epochs,
            batch_size,
            learning_rate,
            val_epoch,
            eval_batch_size,
            verbose and sys.stderr.isatty(),
            callbacks=[*callbacks, *options.pop("callbacks", ())],
            **options,
        )
        if verbose and history["seconds"]:
            _say(f"Training complete. Total time: {history['seconds'][-1]:.1f}s")
        return history

    def evaluate(self, dataset: Any, *args: Any, **options: Any) -> tuple[float, float]:
        """Rank the test item: see `ssept_ext.evaluation.evaluate`. `dataset` is as for `train_model`."""
        return super().evaluate(as_dataset(dataset), *args, **options)

    def evaluate_valid(self, dataset: Any, *args: Any, **options: Any) -> tuple[float, float]:
        """Rank the validation item: see `ssept_ext.evaluation.evaluate`. `dataset` is as for `train_model`."""
        return super().evaluate_valid(as_dataset(dataset), *args, **options)

    @property
    def is_capturable(self) -> bool:  # type: ignore[override]
        """Whether training runs none of a user's methods and hooks, which may wait for the device."""
        methods = (self.forward, self.loss_function, self.create_combined_dataset)
        return all(map(is_ours, methods)) and not (self._forward_hooks or self._forward_pre_hooks)

    def training_loss(
        self, batch: PackedBatch, loss: Any = "bce", *, seed: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Return the loss of a batch, by a subclass's `forward` and `loss_function` if it has them.

        They draw from torch's global generator, which has `seed` then: a resumed training draws the same.
        """
        if self.is_capturable:
            return super().training_loss(batch, loss, seed=seed, **options)
        if loss != "bce":
            raise ValueError(
                f'loss must be "bce" where {type(self).__name__} has a forward pass or a loss of its own, got "{loss}"'
            )
        assert batch.positives is not None
        assert batch.negatives is not None
        if batch.negatives.shape[1] > 1 or batch.negatives_per != "event":
            raise ValueError(
                f"num_negatives of the sampler must be 1 where {type(self).__name__} has a forward pass or a loss of "
                f"its own, got {batch.negatives.shape[1]} per {batch.negatives_per}"
            )
        ids = (batch.items, batch.positives, batch.negatives[:, 0])
        padded = [_padded(x, batch, self.seq_max_len).cpu().numpy() for x in ids]
        inputs, _ = self.create_combined_dataset(batch.users.cpu().numpy(), *padded)
        tensors = {name: torch.as_tensor(x, device=self.device) for name, x in inputs.items()}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:  # one of its own for each process
                torch.manual_seed(int(seed) + getattr(batch, "process", 0))
            return self.loss_function(*self(tensors, training=True))

    def score(
        self,
        batch: PackedBatch,
        candidates: Tensor,
        user_part: bool = True,
        user_vectors: Tensor | None = None,
    ) -> Tensor:
        """Score candidates, by a subclass's `predict` if it has one."""
        if is_ours(self.predict):
            return super().score(batch, candidates, user_part, user_vectors)
        inputs = {
            "user": batch.users[:, None],
            "input_seq": _padded(batch.items, batch, self.seq_max_len),
            "candidate": candidates,
        }
        return self.predict(inputs)

    def encode_last(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Encode for rankings of the whole catalogue, which cannot call a subclass's `predict`.

        Raises
        ------
        TypeError
            If a subclass overrides `predict`.
        """
        if not is_ours(self.predict):
            raise TypeError(
                f"{type(self).__name__} overrides predict, which rankings of the whole catalogue do not call"
            )
        return super().encode_last(*args, **options)


def _padded(tokens: Tensor, batch: PackedBatch, num_columns: int) -> Tensor:
    """Lay out a value of each token, (N, ...), in padded sequences (B, T, ...)."""
    lengths = batch.cu_seqlens.diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    padded = tokens.new_zeros(len(lengths), num_columns, *tokens.shape[1:])
    padded[row, batch.positions] = tokens
    return padded


def _say(line: str) -> None:
    if distributed.rank() == 0:
        print(line)


def _print_epoch(progress: Progress) -> None:
    figures = progress.epochs[-1]
    line = f"Epoch {figures.epoch}: loss={figures.loss:.4f}"
    if figures.val_ndcg is not None:
        line += f", val_NDCG@10={figures.val_ndcg:.4f}, val_HR@10={figures.val_hr:.4f}, time={figures.seconds:.1f}s"
    _say(line)
