"""The fused operations, on packed tokens, each with a native and a reference implementation.

Under `torch.autocast` hidden states are of autocast's type, and tables stay as they are: `user_item_embedding` reads
the tables in their own type and returns autocast's; `position_layer_norm` and `bias_dropout` cast what they get, as
`torch.nn.functional.linear` does; `sampled_logits` widens the hidden states to the tables' type, so that logits and the
gradients of tables are not rounded; `causal_attention` works in the type of q, k and v, which linear layers have made
autocast's. float64 is never cast.
"""

import sys

from ssept_ext._extension import OPS, native_available
from ssept_ext.ops.bias_dropout import bias_dropout
from ssept_ext.ops.causal_attention import causal_attention, padded_causal_attention
from ssept_ext.ops.errors import raise_pending_errors
from ssept_ext.ops.position_layer_norm import position_layer_norm
from ssept_ext.ops.sampled_logits import sampled_logits
from ssept_ext.ops.user_item_embedding import user_item_embedding

__all__ = [
    "bias_dropout",
    "causal_attention",
    "padded_causal_attention",
    "position_layer_norm",
    "raise_pending_errors",
    "sampled_logits",
    "user_item_embedding",
]


def register(namespace: str) -> None:
    """Give the C++ ops of a library namespace their shapes (for compilers) and their gradients."""
    for op in OPS:
        # By module, as the functions have the modules' names.
        sys.modules[f"{__name__}.{op}"].register(namespace)


if native_available():
    register("ssept_ext")
