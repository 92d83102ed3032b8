"""Tables too big for one device: their rows spread over the processes, by TorchRec.

Needs `torchrec` and FBGEMM (`pip install 'ssept_ext[large-tables]'`, or `fbgemm-gpu-cpu` instead of
`fbgemm-gpu` on a machine without a GPU), and a process group, see `ssept_ext.distributed`. What a
process looks up for its part of a batch makes two small tables, on which model and ops work as
always; their gradients go back to the processes that hold the rows, and change these at once.
`docs/large_tables.md` has the numbers and the limits.
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
from ssept_ext.data.packed import PackedBatch
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.layers import LayerNormalization
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sse import replace_ids
from ssept_ext.training.step import Loss

TableOptimizer = Literal["sgd", "rowwise_adagrad", "adam"]
_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
_MULTIPLE = 4  # FBGEMM's rows are multiples of so many features


class ShardedTables:
    """The item table, and the user table of `SSEPT`, each with its rows spread evenly over the processes.

    Rows change in the backward of a lookup, only those looked up and each by the sum of its gradients:
    "sgd", "rowwise_adagrad" (one number of state a row), or "adam" (two rows of state a row, on GPUs
    only), which, other than `train_model`'s, leaves the moments of all other rows as they are.

    Attributes
    ----------
    shards
        By "item" and "user", TorchRec's sharded collections; their `state_dict` holds ShardedTensors.
    """

    def __init__(
        self,
        config: SASRECConfig,
        *,
        optimizer: TableOptimizer,
        learning_rate: float,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the tables of a model, and draw them. Every process of the default group must call this.

        A ValueError names an unknown optimizer, or an `l2_reg` in the config, which cannot be had.
        """
        if optimizer not in _OPTIMIZERS:
            raise ValueError(f'optimizer must be one of {tuple(_OPTIMIZERS)}, got "{optimizer}"')
        if config.l2_reg:
            raise ValueError(
                f"l2_reg must be 0, as rows change only when they are looked up, got {config.l2_reg}"
            )
        self.config = config
        sizes = {"item": (config.item_num, config.item_dim)}
        if isinstance(config, SSEPTConfig):
            sizes["user"] = (config.user_num, config.user_dim)
        self._widths = {noun: width for noun, (_, width) in sizes.items()}
        fused = {"optimizer": _OPTIMIZERS[optimizer], "learning_rate": learning_rate, "eps": 1e-7}
        sharder = EmbeddingCollectionSharder(fused_params=fused)
        # A group of its own, so that DistributedDataParallel's reductions cannot get in between.
        env = ShardingEnv.from_process_group(dist.new_group())
        self.shards: dict[str, nn.Module] = {}
        seed = distributed.broadcast_from_rank0(lambda: int(torch.randint(2**62, (1,))))
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
        """What this process holds of a table: the id of the first row, and the rows, to be written to.

        (rows, width), where the width is the next multiple of 4.
        """
        weight = self.shards[noun].state_dict()[f"embeddings.{noun}.weight"]
        return [
            (shard.metadata.shard_offsets[0], shard.tensor.detach())
            for shard in weight.local_shards()
        ]

    def look_up(self, batch: PackedBatch) -> tuple[dict[str, Tensor], PackedBatch]:
        """Fetch the rows that a batch with targets needs; all processes must call it together.

        Returns
        -------
        tuple[dict[str, Tensor], PackedBatch]
            The parameters of a model that these rows stand for, row 0 zero, and the batch with ids that are
            rows of theirs.
        """
        assert batch.positives is not None
        assert batch.negatives is not None
        ids = torch.cat([batch.items, batch.positives, batch.negatives.flatten()])
        rows, places = self._rows("item", ids)
        count = len(batch.items)
        items, positives, negatives = places.tensor_split([count, 2 * count])
        found = {"item_embedding_layer.weight": rows}
        users = batch.users
        if "user" in self.shards:
            found["user_embedding_layer.weight"], users = self._rows("user", users)
        return found, replace(
            batch,
            users=users,
            items=items,
            positives=positives,
            negatives=negatives.view_as(batch.negatives),
        )

    def loss(
        self, model: SequentialRecommender, loss: Literal["bce", "gbce", "bpr"] = "bce"
    ) -> Loss:
        """The loss of a model that `without_tables` made, for `ssept_ext.training.data_parallel.data_parallel`.

        Ids are replaced by SSE as the config of the tables says. The losses that need more than the rows
        of a batch, "softmax" and "sampled_softmax", cannot be had.
        """
        parts = _TrainingLoss(model)
        user_num = getattr(self.config, "user_num", 0)

        def value(batch: PackedBatch, seed: Tensor) -> Tensor:
            batch = replace_ids(batch, self.config.sse, user_num, self.config.item_num, seed)
            rows, batch = self.look_up(batch)
            named = {f"model.{name}": tensor for name, tensor in rows.items()}
            result: Tensor = functional_call(parts, named, (batch, loss, seed))
            return result

        return value

    def _rows(self, noun: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the distinct ids, behind one of zeros for id 0, and which of them each id has."""
        distinct, places = torch.unique(torch.cat([ids.new_zeros(1), ids]), return_inverse=True)
        wanted = KeyedJaggedTensor(
            keys=[noun], values=distinct[1:], lengths=ids.new_tensor([len(distinct) - 1])
        )
        rows = self.shards[noun](wanted).wait()[noun].values()[:, : self._widths[noun]]
        return torch.cat([rows.new_zeros(1, rows.shape[1]), rows]), places[1:]


class _TrainingLoss(nn.Module):
    """`training_loss` as a forward, which is what `functional_call` calls."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: PackedBatch, loss: Literal["bce", "gbce", "bpr"], seed: Tensor
    ) -> Tensor:
        return self.model.training_loss(batch, loss, seed=seed)


def without_tables(
    config: SASRECConfig, device: torch.device | str = "cpu"
) -> SequentialRecommender:
    """A model of this config whose item and user tables take no memory, and whose SSE is `ShardedTables`'."""
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
