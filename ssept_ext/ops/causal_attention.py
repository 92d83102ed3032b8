"""The op `causal_attention`."""

from __future__ import annotations

from torch import Tensor

from ssept_ext import reference
from ssept_ext._extension import Backend, use_native


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention within each of B packed sequences.

    The layout is that of `flash_attn_varlen_func`: query i of a sequence's nq sees the keys up to nk - nq + i,
    so that the newest query and the newest key meet. The dropout mask of a weight is a function of
    (seed, site, query token · H + head, key's index in its sequence) alone.

    Parameters
    ----------
    q : (Nq, H, Dh) float16, bfloat16, float32 or float64, Dh in 1..256
    k, v : (Nk, H, Dh), same type
    cu_seqlens_q, cu_seqlens_k : (B + 1,) int32 offsets of the sequences in q and in k and v
    max_seqlen_q, max_seqlen_k : at least the longest sequence's number of tokens
    scale : factor of the scores, 1 / sqrt(Dh) in the papers
    dropout_p : probability in [0, 1) that a weight is dropped; the others are scaled by 1 / (1 - dropout_p)
    seed : (1,) int64, needed where dropout_p > 0
    site : which dropout of the model this is
    backend : overrides `ssept_ext.set_backend` for this call

    Returns
    -------
    out : (Nq, H, Dh), same type; zeros for queries that see no key
    lse : (Nq, H) float32 or wider, logarithm of the softmax's denominator, without gradient; -inf for queries
        that see no key, 0 for tokens from `cu_seqlens_q[B]` on

    Raises
    ------
    ValueError
        If a shape, type or device does not fit; names the argument.
    """
    use_native("causal_attention", q.device, backend)
    return reference.causal_attention(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        dropout_p,
        seed,
        site,
    )
