"""The three fused operations, on packed tokens, each with a native and a reference implementation."""

from ssept_ext._extension import native_available
from ssept_ext.ops.causal_attention import causal_attention
from ssept_ext.ops.causal_attention import register as _register_causal_attention
from ssept_ext.ops.errors import raise_pending_errors
from ssept_ext.ops.sampled_logits import register as _register_sampled_logits
from ssept_ext.ops.sampled_logits import sampled_logits
from ssept_ext.ops.user_item_embedding import register as _register_user_item_embedding
from ssept_ext.ops.user_item_embedding import user_item_embedding

__all__ = ["causal_attention", "raise_pending_errors", "sampled_logits", "user_item_embedding"]


def register(namespace: str) -> None:
    """Give the C++ ops of a library namespace their shapes (for compilers) and their gradients."""
    _register_user_item_embedding(namespace)
    _register_causal_attention(namespace)
    _register_sampled_logits(namespace)


if native_available():
    register("ssept_ext")
