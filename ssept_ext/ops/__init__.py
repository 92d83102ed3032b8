"""The fused operations, on packed tokens, each with a native and a reference implementation.

Under `torch.autocast`, hidden states have autocast's dtype and tables keep their own. `user_item_embedding` reads the
tables in their dtype and returns autocast's; `position_layer_norm`, `feed_forward`, `gated_residual` and `swiglu` cast
their inputs, as `torch.nn.functional.linear` does; `sampled_logits` and `sampled_loss` widen the hidden states to the
dtype of the tables, so that neither logits nor gradients of tables are rounded; `multi_head_attention` casts hidden
states and weights, and `causal_attention` computes in the dtype of q, k and v. float64 is never cast. `lazy_adam` and
`rowwise_adagrad`, which change rows of a table in place, `top_k` and `item_ranks` are outside of autograd and autocast.
"""

import sys

from ssept_ext._extension import OPS, RANKING_OPS, native_available
from ssept_ext.ops.causal_attention import causal_attention, padded_causal_attention
from ssept_ext.ops.errors import raise_pending_errors
from ssept_ext.ops.feed_forward import feed_forward, feed_forward_and_norm
from ssept_ext.ops.gated_residual import gated_residual
from ssept_ext.ops.item_ranks import item_ranks
from ssept_ext.ops.multi_head_attention import multi_head_attention
from ssept_ext.ops.position_layer_norm import position_layer_norm
from ssept_ext.ops.relative_bias import time_buckets
from ssept_ext.ops.row_update import lazy_adam, rowwise_adagrad
from ssept_ext.ops.sampled_logits import sampled_logits
from ssept_ext.ops.sampled_loss import sampled_loss
from ssept_ext.ops.shared_loss import shared_loss
from ssept_ext.ops.swiglu import swiglu
from ssept_ext.ops.top_k import top_k
from ssept_ext.ops.user_item_embedding import (
    user_item_embedding,
    user_item_embedding_and_tables,
)

__all__ = [
    "causal_attention",
    "feed_forward",
    "feed_forward_and_norm",
    "gated_residual",
    "item_ranks",
    "lazy_adam",
    "multi_head_attention",
    "padded_causal_attention",
    "position_layer_norm",
    "raise_pending_errors",
    "rowwise_adagrad",
    "sampled_logits",
    "sampled_loss",
    "shared_loss",
    "swiglu",
    "time_buckets",
    "top_k",
    "user_item_embedding",
    "user_item_embedding_and_tables",
]


def register(namespace: str) -> None:
    """Register the fake implementations (for torch.compile) and gradients of the C++ ops in a library namespace."""
    for op in (*OPS, *RANKING_OPS, "row_update"):
        # Each module has the same name as its function, which hides it here: look it up in sys.modules.
        sys.modules[f"{__name__}.{op}"].register(namespace)


if native_available():
    register("ssept_ext")
