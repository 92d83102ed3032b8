"""The op `causal_attention`: fused causal self-attention on packed or padded sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call, matmul_takes_tf32, register_op
from ssept_ext.ops.relative_bias import empty_gradients


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
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_times: Tensor | None = None,
    key_times: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention within each of B packed sequences, in the layout of `flash_attn_varlen_func`.

    The causal mask is aligned to the bottom-right corner: query i of nq sees keys 0 to nk - nq + i. With nq = 2 and
    nk = 5 (x: visible, .: masked):

            k0 k1 k2 k3 k4
        q0   x  x  x  x  .
        q1   x  x  x  x  x

    The dropout mask of an attention weight depends only on (seed, site, query token · H + head, index of the key in
    its sequence).

    On CUDA, float32 products use TF32 tensor cores (inputs rounded to 10 bits of mantissa) if
    `torch.backends.cuda.matmul.allow_tf32` or `torch.set_float32_matmul_precision` allows it for matmul.

    Parameters
    ----------
    q
        (Nq, H, Dh) float16, bfloat16, float32 or float64, with Dh in 1..256; on CUDA, float64 has Dh up to
        128, and so has every type with a bias.
    k, v
        (Nk, H, Dh), same dtype.
    cu_seqlens_q, cu_seqlens_k
        (B + 1,) int32 offsets of the sequences in q, and in k and v.
    max_seqlen_q, max_seqlen_k
        Length of the longest sequence, or an upper bound of it.
    scale
        Factor of the scores before the softmax, usually 1 / sqrt(Dh).
    dropout_p
        Probability in [0, 1) that a weight is dropped; the rest are scaled by 1 / (1 - dropout_p).
    seed
        (1,) int64 dropout seed; required if dropout_p > 0.
    site
        Number of this dropout in the model: different sites have independent masks.
    position_bias
        (H, P) floating-point: what is added to the scaled score of a query and the key that it sees d keys before its
        newest, in column d. P must be at least the length of the longest sequence of keys, or the upper bound of it.
    time_bias
        (H, 128) floating-point: what is added for the time between a query and a key, `query_times - key_times`, in the
        column of `ssept_ext.ops.time_buckets`.
    query_times, key_times
        (Nq,) and (Nk,) int64, in any unit; given with time_bias.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Returns
    -------
    out
        (Nq, H, Dh), same dtype; zeros for queries that see no key.
    lse
        (Nq, H) float32 or wider: the logsumexp of the scores, without gradient. -inf for queries that see no key,
        0 for tail padding.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it. On CUDA, a sequence longer than `max_seqlen_q` or
        `max_seqlen_k` is not detected: the result is right, but takes longer.

    Examples
    --------
    >>> q = k = torch.zeros(3, 1, 4)  # equal scores: each query averages the values up to its own
    >>> v = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 1, 4).contiguous()
    >>> offsets = torch.tensor([0, 3], dtype=torch.int32)
    >>> out, lse = causal_attention(q, k, v, offsets, offsets, 3, 3, scale=0.5)
    >>> out[:, 0, 0]
    tensor([1.0000, 1.5000, 2.0000])
    """
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    wide = torch.promote_types(q.dtype, torch.float32)
    tables = [None if x is None else x.to(wide) for x in (position_bias, time_bias)]
    bias = (*tables, query_times, key_times)
    args = (q, k, v, *lengths, scale, dropout_p, seed, site, matmul_takes_tf32(), *bias)
    return call("causal_attention", q.device, backend, *args)  # type: ignore[no-any-return]


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
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_times: Tensor | None = None,
    key_times: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """`causal_attention` on padded sequences of equal shape, such as those of other models.

    Padding may be anywhere in a sequence. It is removed before the kernel runs and costs no time there.

    Parameters
    ----------
    q, k, v
        (B, T, H, Dh), all of one dtype.
    key_mask
        (B, T) bool, True at real tokens.
    query_times, key_times
        (B, T) int64, given with time_bias.
    scale, dropout_p, seed, site, position_bias, time_bias, backend
        As in `causal_attention`. Padding counts in no distance.

    Returns
    -------
    Tensor
        (B, T, H, Dh), same dtype; zeros where `key_mask` is False.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.

    Examples
    --------
    >>> x = torch.randn(2, 5, 1, 8)  # 2 sequences of 5 tokens, 1 head of 8 features
    >>> key_mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    >>> padded_causal_attention(x, x, x, key_mask, scale=8**-0.5).shape
    torch.Size([2, 5, 1, 8])
    """
    if key_mask.dtype != torch.bool or key_mask.shape != q.shape[:2]:
        raise ValueError(
            f"key_mask must be bool of shape {tuple(q.shape[:2])}, got {key_mask.dtype} "
            f"{tuple(key_mask.shape)}"
        )
    shapes = {"k": (k, q.shape), "v": (v, q.shape)}
    shapes |= {
        name: (times, key_mask.shape)
        for name, times in (("query_times", query_times), ("key_times", key_times))
        if times is not None
    }
    for name, (x, shape) in shapes.items():
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
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
        position_bias=position_bias,
        time_bias=time_bias,
        query_times=None if query_times is None else query_times[key_mask],
        key_times=None if key_times is None else key_times[key_mask],
        backend=backend,
    )
    return torch.zeros_like(q).masked_scatter(key_mask[..., None, None], out)


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).causal_attention_backward

    def fake(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)

    def fake_backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        of_bias = empty_gradients(*rest[11:13], like=q)  # torch leaves out arguments at defaults
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *of_bias

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        qkv, offsets, seed, bias = inputs[:3], inputs[3:5], inputs[9], inputs[12:]
        ctx.before_seed, ctx.after_seed = inputs[5:9], inputs[10:12]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*qkv, *output, *offsets, seed, *bias)

    def backward(ctx: Any, grad_out: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 16
        *tensors, seed, position, time, query_times, key_times = ctx.saved_tensors
        bias = (position, time, query_times, key_times)
        settings = (*ctx.before_seed, seed, *ctx.after_seed)
        *of_qkv, of_position, of_time = backward_op(grad_out, *tensors, *settings, *bias)
        of_bias = (None if position is None else of_position, None if time is None else of_time)
        return *of_qkv, *(None,) * 9, *of_bias, None, None

    register_op(
        namespace,
        "causal_attention",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
