"""Embedding tables that are too large for one device, with rows sharded over the processes by TorchRec.

This needs `torchrec` and FBGEMM (`pip install 'ssept_ext[large-tables]'`, or `fbgemm-gpu-cpu` instead of
`fbgemm-gpu` on a machine without a GPU), and a process group, see `ssept_ext.distributed`. Each process looks up the
rows that its part of a batch needs. They form two small tables, which the model uses like its own. In the backward
pass, their gradients are sent to the processes that own the rows, which update them at once. `docs/large_tables.md`
has measurements and limits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.func import functional_call
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv

from ssept_ext import distributed
from ssept_ext.data.packed import PackedBatch, number_rows
from ssept_ext.data.sse import replace_ids
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.layers import LayerNormalization
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.training.data_parallel import LossModule
from ssept_ext.training.step import Loss
from ssept_ext.utils.checks import check_one_of

TableOptimizer = Literal["sgd", "rowwise_adagrad", "adam"]
_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
_MULTIPLE = 4  # FBGEMM needs rows of a multiple of 4 features


class ShardedTables:
    """The item table and, for `SSEPT`, the user table, each sharded evenly by rows over the processes.

    The backward pass of a lookup updates the rows that were looked up, each by the sum of its gradients, with "sgd",
    "rowwise_adagrad" (one number of state per row) or "adam" (two rows of state per row; GPUs only). Unlike the Adam
    of `train_model`, this one does not change the moments of other rows.

    Attributes
    ----------
    shards
        TorchRec's sharded collections, with the keys "item" and "user"; their `state_dict` holds ShardedTensors.
    """

    def __init__(
        self,
        config: SASRECConfig,
        *,
        optimizer: TableOptimizer,
        learning_rate: float,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make and initialise the tables of a model. Every process of the default group must call this.

        Raises
        ------
        ValueError
            If the optimizer is unknown, or `config.l2_reg` is not 0, which is not supported.
        """
        check_one_of("optimizer", optimizer, tuple(_OPTIMIZERS))
        if config.l2_reg:
            raise ValueError(
                f"l2_reg must be 0, because only rows that are looked up change, got {config.l2_reg}"
            )
        self.config = config
        sizes = {"item": (config.item_num, config.item_dim)}
        if isinstance(config, SSEPTConfig):
            sizes["user"] = (config.user_num, config.user_dim)
        self._widths = {noun: width for noun, (_, width) in sizes.items()}
        fused = {"optimizer": _OPTIMIZERS[optimizer], "learning_rate": learning_rate, "eps": 1e-7}
        sharder = EmbeddingCollectionSharder(fused_params=fused)
        # A separate process group, so that communication cannot interleave with DistributedDataParallel's.
        env = ShardingEnv.from_process_group(dist.new_group())
        self.shards: dict[str, nn.Module] = {}
        seed = distributed.broadcast_from_rank0(
            lambda: int(torch.randint(2**62, (1,), device="cpu"))
        )
        generator = torch.Generator(device).manual_seed(seed + distributed.rank())
        for noun, (count, width) in sizes.items():
            table = EmbeddingConfig(
                name=noun,
                embedding_dim=-(-width // _MULTIPLE) * _MULTIPLE,
                num_embeddings=count + 1,
                feature_names=[noun],
            )
            whole = EmbeddingCollection(tables=[table], device=torch.device("meta"))
            plan = construct_module_sharding_plan(
                whole,
                {noun: row_wise(compute_kernel="fused")},
                sharder,
                device_type=torch.device(device).type,
            )
            self.shards[noun] = sharder.shard(whole, plan, env, torch.device(device))
            limit = 0.05
            if config.embedding_init == "xavier":
                limit = math.sqrt(6 / (count + 1 + width))
            for _, rows in self.local_rows(noun):
                nn.init.uniform_(rows, -limit, limit, generator)

    def local_rows(self, noun: str) -> list[tuple[int, Tensor]]:
        """Return this process's shards of a table: pairs of the first row's id and the rows, which may be modified.

        Rows have shape (n, width), with the width rounded up to a multiple of 4.
        """
        weight = self.shards[noun].state_dict()[f"embeddings.{noun}.weight"]
        return [
            (shard.metadata.shard_offsets[0], shard.tensor.detach())
            for shard in weight.local_shards()
        ]

    def look_up(self, batch: PackedBatch) -> tuple[dict[str, Tensor], PackedBatch]:
        """Fetch the rows that a batch with targets needs; all processes must call this together.

        Returns
        -------
        tuple[dict[str, Tensor], PackedBatch]
            The small tables, by names of the model's parameters, with zeros as row 0; and the batch, with ids that are
            rows of these tables.
        """
        numbers = number_rows(batch).numbers
        assert numbers is not None
        found = {"item_embedding_layer.weight": self._rows("item", numbers.item_ids)}
        users = batch.users
        if "user" in self.shards:
            users = numbers.users
            found["user_embedding_layer.weight"] = self._rows("user", numbers.user_ids)
        return found, replace(
            batch,
            users=users,
            items=numbers.items,
            positives=numbers.positives,
            negatives=numbers.negatives,
            numbers=None,
        )

    def loss(
        self, model: SequentialRecommender, loss: Literal["bce", "gbce", "bpr"] = "bce"
    ) -> Loss:
        """Make the loss of a model from `without_tables`, for `ssept_ext.training.data_parallel.data_parallel`.

        SSE replaces ids as the config of the tables says. The losses that need more than the rows of a batch, "softmax"
        and "sampled_softmax", are not supported.
        """
        whole = LossModule(model, lambda batch, seed: model.training_loss(batch, loss, seed=seed))

        def value(batch: PackedBatch, seed: Tensor) -> Tensor:
            if self.config.sse.is_active and not batch.ids_replaced:
                batch = replace_ids(batch, self.config.sse, int(seed))
            rows, batch = self.look_up(batch)
            named = {f"model.{name}": tensor for name, tensor in rows.items()}
            result: Tensor = functional_call(whole, named, (batch, seed))
            return result

        return value

    def _rows(self, noun: str, ids: Tensor) -> Tensor:
        """Look up distinct ids of which the first is 0: a row of zeros, then their rows."""
        wanted = KeyedJaggedTensor(
            keys=[noun], values=ids[1:], lengths=ids.new_tensor([len(ids) - 1])
        )
        rows = self.shards[noun](wanted).wait()[noun].values()[:, : self._widths[noun]]
        return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])


def without_tables(
    config: SASRECConfig, device: torch.device | str = "cpu"
) -> SequentialRecommender:
    """Make a model without item and user tables and without SSE: `ShardedTables` does both."""
    config = replace(config, sse_item_prob=0.0, sse_target_prob=0.0, sse_joint=False)
    if isinstance(config, SSEPTConfig):
        config = replace(config, sse_user_prob=0.0)
    with torch.device("meta"):
        model = SequentialRecommender(config)
    for layer in (model.item_embedding_layer, model.user_embedding_layer):
        if layer is not None:
            width = layer.weight.shape[1]
            del layer.weight
            layer.register_buffer("weight", torch.zeros(1, width), persistent=False)
    model = model.to_empty(device=device)
    model.reset_parameters()
    for module in model.modules():
        if isinstance(module, LayerNormalization):
            nn.init.ones_(module.gamma)
            nn.init.zeros_(module.beta)
    return model
