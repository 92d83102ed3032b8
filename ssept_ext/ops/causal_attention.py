"""The op `causal_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext._extension import Backend, use_native
from ssept_ext.ops import reference


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

    On CUDA, products of float32 are computed in float32, or by TF32 tensor cores (inputs rounded to 10 bits)
    where `torch.backends.cuda.matmul.allow_tf32` or `torch.set_float32_matmul_precision` lets matmul do so.

    Parameters
    ----------
    q
        (Nq, H, Dh) float16, bfloat16, float32 or float64, Dh in 1..256; on CUDA up to 128 in float64.
    k, v
        (Nk, H, Dh), same type.
    cu_seqlens_q, cu_seqlens_k
        (B + 1,) int32 offsets of the sequences in q and in k and v.
    max_seqlen_q, max_seqlen_k
        At least the longest sequence's number of tokens.
    scale
        Factor of the scores, 1 / sqrt(Dh) in the papers.
    dropout_p
        Probability in [0, 1) that a weight is dropped; the others are scaled by 1 / (1 - dropout_p).
    seed
        (1,) int64, needed where dropout_p > 0.
    site
        Which dropout of the model this is.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    out
        (Nq, H, Dh), same type; zeros for queries that see no key.
    lse
        (Nq, H) float32 or wider, logarithm of the softmax's denominator, without gradient; -inf for queries
        that see no key, 0 for tokens from `cu_seqlens_q[B]` on.

    Raises
    ------
    ValueError
        If a shape, type or device does not fit; names the argument. On CUDA a sequence longer than max_seqlen
        goes unnoticed, and costs time only.
    """
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    args = (q, k, v, *lengths, scale, dropout_p, seed, site)
    if use_native("causal_attention", q.device, backend):
        return torch.ops.ssept_ext.causal_attention(*args, _matmul_takes_tf32())  # type: ignore[no-any-return]
    return reference.causal_attention(*args)


def _matmul_takes_tf32() -> bool:
    """A graph of torch.compile is made anew where this changes: torch guards it as part of its global state."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


# What torch.compiler.assume_constant_result does after importing torch._dynamo, which took half of `import ssept_ext`.
_matmul_takes_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def padded_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor,
    scale: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """`causal_attention` of padded sequences, for those who want the kernel and nothing else.

    Positions that `key_mask` leaves out, anywhere in a sequence, are dropped before the kernel and take no time.

    Parameters
    ----------
    q, k, v
        (B, T, H, Dh) of one type.
    key_mask
        (B, T) bool, True at real tokens.
    scale, dropout_p, seed, site, backend
        As in `causal_attention`.

    Returns
    -------
    Tensor
        (B, T, H, Dh), same type; zeros where `key_mask` is False.

    Raises
    ------
    ValueError
        If a shape, type or device does not fit; names the argument.
    """
    if key_mask.dtype != torch.bool or key_mask.shape != q.shape[:2]:
        raise ValueError(
            f"key_mask must be bool of shape {tuple(q.shape[:2])}, got {key_mask.dtype} "
            f"{tuple(key_mask.shape)}"
        )
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} must have shape {tuple(q.shape)}, got {tuple(x.shape)}")
    cu_seqlens = F.pad(key_mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    out, _ = causal_attention(
        q[key_mask],
        k[key_mask],
        v[key_mask],
        cu_seqlens,
        cu_seqlens,
        q.shape[1],
        q.shape[1],
        scale,
        dropout_p,
        seed,
        site,
        backend=backend,
    )
    return torch.zeros_like(q).masked_scatter(key_mask[..., None, None], out)


def register(namespace: str) -> None:
    """Register shapes and gradients of the C++ ops of a library namespace."""
    backward_op = getattr(torch.ops, namespace).causal_attention_backward

    def fake(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)

    def fake_backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        (
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            *ctx.lengths_and_scale,
            ctx.dropout_p,
            seed,
            ctx.site,
            ctx.allow_tf32,
        ) = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seed)

    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, seed = ctx.saved_tensors
        gradients = backward_op(
            grad_out,
            *tensors,
            *ctx.lengths_and_scale,
            ctx.dropout_p,
            seed,
            ctx.site,
            ctx.allow_tf32,
        )
        return *gradients, *(None,) * 9

    torch.library.register_fake(f"{namespace}::causal_attention", fake)
    torch.library.register_fake(f"{namespace}::causal_attention_backward", fake_backward)
    torch.library.register_autograd(
        f"{namespace}::causal_attention", backward, setup_context=setup_context
    )
