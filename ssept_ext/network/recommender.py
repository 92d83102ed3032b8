"""SASRec and SSE-PT: embedding, encoder, scores and loss, on packed batches.

Notation: B sequences with N tokens in all, item and user vectors of widths Di and Du (SASRec: Du = 0),
hidden states of width D = Di + Du, K negatives per token.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

import torch
from torch import Tensor

from ssept_ext import ops
from ssept_ext._extension import Backend, check_backend
from ssept_ext.data.packed import BatchPart, PackedBatch
from ssept_ext.data.sse import replace_ids
from ssept_ext.network import losses
from ssept_ext.network.compressed import CompressedTable
from ssept_ext.network.config import SASRECConfig
from ssept_ext.network.encoder import Encoder, initialise
from ssept_ext.network.layers import NO_DROPOUT, Dropout, LayerNormalization, Tokens
from ssept_ext.network.scores import Scores
from ssept_ext.network.tables import LookedUp, TablesToRead, VectorTables
from ssept_ext.utils.checks import check_one_of

if TYPE_CHECKING:
    from ssept_ext.data.fingerprint import Fingerprint
    from ssept_ext.data.known_histories import KnownHistories


class SequentialRecommender(VectorTables):
    """The network behind `SASREC` and `SSEPT`: `forward` is the forward pass that training runs.

    Parameters
    ----------
    config
        Sizes and options; an `SSEPTConfig` adds user vectors.
    backend
        Which kernels to run, see `ssept_ext.set_backend`.

    Examples
    --------
    >>> from ssept_ext import pack
    >>> config = SASRECConfig(item_num=9, seq_max_len=3, embedding_dim=4, conv_dims=[4, 4])
    >>> network = SequentialRecommender(config)
    >>> network(pack(torch.tensor([0, 0]), torch.tensor([[0, 3, 5], [0, 0, 4]]))).shape  # 3 tokens
    torch.Size([3, 4])
    """

    config_class: ClassVar[type[SASRECConfig]] = SASRECConfig
    encoder_class: ClassVar[type[Encoder]] = Encoder
    norm_class: ClassVar[type[LayerNormalization]] = LayerNormalization
    known: KnownHistories | None = None
    """Raw ids and histories of a model trained by `fit`: `recommend` and `similar_items` take and return these ids."""
    compressed: CompressedTable | None = None
    """What items are ranked by instead of their own vectors: see `ssept_ext.ranking.compressing.compress`."""
    is_capturable: bool = True
    """Whether `training_loss` never waits for the device, so that training may capture its steps in a CUDA graph."""

    trained_on: Fingerprint | None = None
    """Of the data of the last training."""

    optimizer_state: dict[str, Tensor] | None = None
    """Of the last `fit` or `update` in this process, from where the next update goes on; it takes as much memory as two
    models, until it is set to None. `save_pretrained` does not save it."""

    def __init__(self, config: SASRECConfig, backend: Backend = "auto") -> None:
        super().__init__(config)
        self.backend = check_backend(backend)
        self.sse = config.sse
        self.encoder = self.encoder_class(config, self.backend)
        self.layer_normalization = self.norm_class(config, self.backend)
        self.scores = Scores(config, self.backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise tables as `embedding_init` says, and layers as `encoder.initialise` does."""
        initialise(self, self.config.embedding_init)
        self.scores.reset_parameters()
        if self.content is not None:
            self.content.reset_parameters()

    def encode(
        self,
        batch: PackedBatch,
        drop: Dropout = NO_DROPOUT,
        last_only: bool = False,
        user_table: Tensor | None = None,
        looked_up: TablesToRead | None = None,
    ) -> Tensor:
        """Compute the hidden states: the forward pass, up to the scores.

        Parameters
        ----------
        batch
            N tokens of B sequences.
        drop
            Dropout of this pass.
        last_only
            Compute the last block only for the last token of each sequence.
        user_table
            (U + 1, Du) vectors to use instead of the model's.
        looked_up
            What `look_up` returned for this batch, if it has been called. Its tables are replaced as
            `ops.user_item_embedding_and_tables` says, for a loss to read.

        Returns
        -------
        Tensor
            (N, D), or (B, D) with `last_only`.

        Raises
        ------
        ValueError
            If the model has `time_bias` and the batch has no times.
        """
        found = TablesToRead(*self.look_up(batch)) if looked_up is None else looked_up
        tables, rows = found.tables, found.rows
        own = user_table is None
        user_table, users = (tables.users, rows.users) if own else (user_table, batch.users)
        x, items, again = ops.user_item_embedding_and_tables(
            tables.items,  # (I + 1, Di)
            user_table,  # (U + 1, Du)
            self.positional_embedding_layer.weight,  # (T, D)
            rows.items,  # (N,)
            None if user_table is None else users,  # (B,)
            batch.positions,  # (N,)
            batch.cu_seqlens,  # (B + 1,)
            drop.p,
            drop.seed,
            backend=self.backend,
        )  # (N, D), and the tables
        if own:
            found.tables = tables._replace(items=items, users=again)
        where = (batch.positions, batch.cu_seqlens, batch.max_seqlen)
        tokens = Tokens(x, *where, batch.times, batch.target_times)
        norm = self.layer_normalization
        hidden = norm(self.encoder(tokens, drop, 1, last_only, norm))
        return cast("Tensor", hidden)  # (N, D) or (B, D)

    forward = encode

    def training_loss(
        self,
        batch: PackedBatch,
        loss: losses.LossName = "bce",
        *,
        gbce_t: float = 0.75,
        negative_log_probs: Tensor | None = None,
        logq_correction: losses.LogQCorrection = "all",
        seed: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, by the function in `ssept_ext.network.losses` that `loss` names.

        With a seed, this is a pure function of its arguments and the parameters. It never waits for the device, unless
        it has to apply SSE to a batch on a GPU: see `PackedBatch.ids_replaced`.

        Parameters
        ----------
        batch
            A batch with positives and, unless the loss is "softmax", negatives. All ids must be inside the tables.
        gbce_t
            Degree of calibration of "gbce", see `losses.gbce`.
        negative_log_probs
            (item_num + 1,) for "sampled_softmax": log-probability of drawing each item as a
            negative, or (M,) of the rows of a batch with `tables`; None for uniform negatives.
        logq_correction
            Which logits these correct, see `losses.sampled_softmax`.
        seed
            (1,) int64 on the model's device, for dropout and SSE; drawn from torch's global generator if not given.
        """
        check_one_of("loss", loss, get_args(losses.LossName))
        batch.targets(needs_negatives=loss != "softmax")
        batch, looked_up, hidden = self._encode_targets(batch, training=True, seed=seed)  # (N, D)
        positives, negatives = batch.targets(needs_negatives=loss != "softmax")
        tables, rows = looked_up
        queries = self.scores.queries(hidden)  # (N, D)
        if loss == "softmax":
            whole = tables.scored if batch.tables is None else self.output_table()
            vectors = self.scores.vectors(whole)
            item_part = queries[:, : vectors.shape[1]]  # the user's part is the same for every item
            return losses.softmax(item_part, vectors, positives, self.backend)
        beta = 1.0
        if loss == "gbce":
            beta = losses.gbce_beta(negatives.shape[1], self.item_num, gbce_t)
        log_q = negative_log_probs if loss == "sampled_softmax" else None
        users = None if tables.users is None else rows.users
        vectors = self.scores.vectors(tables.scored)
        scored = (queries, vectors, tables.users, *rows.targets(), users, batch.cu_seqlens)
        name = "bce" if loss == "gbce" else loss
        options: dict[str, Any] = {
            "beta": beta,
            "log_q": log_q,
            "corrects_positive": logq_correction == "all",
            "backend": self.backend,
        }
        if batch.negatives_per == "event":
            return ops.sampled_loss(*scored, name, **options)
        return ops.shared_loss(*scored, batch.max_seqlen, name, **options)

    def sampled_logits(
        self, batch: PackedBatch, training: bool = True, seed: Tensor | None = None
    ) -> Tensor:
        """Score each token's positive and negatives.

        Parameters
        ----------
        batch
            A batch with positives and negatives. All ids must be inside the tables.
        training
            False turns dropout and SSE off even if the module is in training mode.
        seed
            (1,) int64 on the model's device, for dropout and SSE; drawn from torch's global generator if not given.

        Returns
        -------
        Tensor
            (N, 1 + K) logits, the positive's in column 0; 0 where the scored id is 0.
        """
        batch.targets()
        batch, looked_up, hidden = self._encode_targets(batch, training, seed)
        tables, rows = looked_up
        items = torch.cat([rows.targets()[0].unsqueeze(1), rows.negatives_of_tokens()], 1)
        pair = self.scores.queries(hidden), self.scores.vectors(tables.scored)
        return cast("Tensor", self.scores(*pair, items, tables.users, rows.users, batch.cu_seqlens))

    def score(
        self,
        batch: PackedBatch,
        candidates: Tensor,
        user_part: bool = True,
        user_vectors: Tensor | None = None,
    ) -> Tensor:
        """Score candidates as each sequence's next item, without dropout.

        Parameters
        ----------
        batch
            B sequences; an empty one gets finite scores. User 0 is unknown, see `user_vectors`.
        candidates
            (B, C) int64 item ids.
        user_part
            False leaves out the user's part of the scores, which is the same for all candidates of a sequence.
            The ranking is then more precise: adding a large constant can round close scores to ties.
        user_vectors
            (B, Du) vectors to use instead of those of `user_vectors`.

        Returns
        -------
        Tensor
            (B, C) float32 or wider, even for a model in half precision, where rounded scores would tie.
        """
        vectors = self.user_vectors(batch.users) if user_vectors is None else user_vectors
        queries, batch, table = self._last_queries(batch, vectors)  # (B, D)
        # One row for each sequence, as if each had one token.
        one_each = torch.arange(queries.shape[0] + 1, dtype=torch.int32, device=queries.device)
        rows, numbers = self.item_rows(candidates)
        pair = queries, self.scores.vectors(rows)
        scored = self.scores(*pair, numbers, table if user_part else None, batch.users, one_each)
        return cast("Tensor", scored)

    def encode_last(
        self, batch: PackedBatch, user_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Split the scores of the next item into queries (B, Di) and user parts (B,), without dropout.

        The score of item j is `queries @ scores.vectors(output_table())[j] + user_part`; the user part is the same for
        all items. Both are float32 or wider.

        Parameters
        ----------
        batch
            B sequences; an empty one gets finite scores. User 0 is unknown, see `user_vectors`.
        user_vectors
            (B, Du) vectors to use instead of those of `user_vectors`.
        """
        vectors = self.user_vectors(batch.users) if user_vectors is None else user_vectors
        queries, _, _ = self._last_queries(batch, vectors)  # (B, D)
        item_part, rest = queries.tensor_split([self.config.item_dim], 1)
        if vectors is None:
            return item_part, item_part.new_zeros(item_part.shape[0])
        user_part = (rest * vectors.to(rest.dtype) * math.sqrt(rest.shape[1])).sum(1)
        return item_part.contiguous(), user_part

    def version(self) -> int:
        """Return a number that grows whenever torch sees a parameter, or a feature of items, change."""
        return sum(x._version for x in (*self.parameters(), *self.buffers()))

    @property
    def item_num(self) -> int:
        """Items have the ids 1..item_num."""
        return self.config.item_num

    @property
    def seq_max_len(self) -> int:
        """T: the model sees this many of a user's last events."""
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

    def _encode_targets(
        self, batch: PackedBatch, training: bool, seed: Tensor | None
    ) -> tuple[PackedBatch, LookedUp, Tensor]:
        """Apply SSE, look up and encode: the batch with its replaced ids, its vectors, and its hidden states (N, D)."""
        sse, drop = self.sse, NO_DROPOUT
        if training and self.training and (sse.is_active or self.dropout_rate > 0):
            if seed is None:
                seed = torch.randint(2**63 - 1, (1,), device="cpu").to(self.device)
            if sse.is_active and not batch.ids_replaced:
                batch = replace_ids(batch, sse, int(seed))
            if self.dropout_rate > 0:
                # Dropout masks depend on the row within this process's part of the batch: with one seed, all
                # processes would drop the same elements.
                own = seed + batch.process if isinstance(batch, BatchPart) else seed
                drop = Dropout(self.dropout_rate, own)
        looked_up = TablesToRead(*self.look_up(batch))
        hidden = self.encode(batch, drop, looked_up=looked_up)
        return batch, (looked_up.tables, looked_up.rows), hidden

    def _last_queries(
        self, batch: PackedBatch, user_vectors: Tensor | None
    ) -> tuple[Tensor, PackedBatch, Tensor | None]:
        """Queries of the last tokens, (B, D), in float32 or wider.

        Also returns the batch with new numbers of users, and the table of the given vectors that these refer to.
        """
        table = None
        if user_vectors is not None:
            table = torch.cat([user_vectors.new_zeros(1, user_vectors.shape[1]), user_vectors])
            batch = replace(batch, users=torch.arange(1, table.shape[0], device=table.device))
        hidden = self.encode(batch, last_only=True, user_table=table)
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return self.scores.queries(wide), batch, table
