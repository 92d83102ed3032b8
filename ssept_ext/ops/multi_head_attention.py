"""The op `multi_head_attention`: projections, causal attention and a residual in one node of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import autocast_type, call, cast, matmul_takes_tf32, register_op
from ssept_ext.ops.relative_bias import empty_gradients


def multi_head_attention(
    x_q: Tensor,
    x_k: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads: int,
    scale: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    residual: bool = True,
    *,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_times: Tensor | None = None,
    key_times: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Multi-head causal self-attention with its projections and its residual, without an output projection.

    Computes `causal_attention(q, k, v) + x_q`, where `q = linear(x_q, q_weight, q_bias)`, and k and v are projections
    of x_k. This is how SASRec (Kang & McAuley 2018, section 3.2) attends from normalised hidden states to raw ones.

    `k_bias` adds the same number to all scores of a query, which the softmax does not see: its gradient is 0.

    Parameters
    ----------
    x_q
        (Nq, D) float16, bfloat16, float32 or float64: what queries are made of. In tail padding it must be finite.
    x_k
        (Nk, D), same dtype: what keys and values are made of. In tail padding it must be finite.
    q_weight, k_weight, v_weight
        (D, D), dtype of x_q or float32, which is rounded to that of x_q. Row i makes output i.
    q_bias, k_bias, v_bias
        (D,), dtype of x_q or float32.
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        As in `causal_attention`.
    num_heads
        H, which must divide D. Head h has the features h · D / H and up. D / H is at most 256; on CUDA, 128 for
        float64 and with a bias of position or time.
    residual
        False leaves out x_q in the sum.
    scale, dropout_p, seed, site, position_bias, time_bias, query_times, key_times, backend
        As in `causal_attention`.

    Returns
    -------
    Tensor
        (Nq, D), same dtype as x_q; x_q for queries that see no key (zeros without `residual`), zeros in tail padding.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype or device; names it.

    Examples
    --------
    >>> x, offsets = torch.ones(3, 4), torch.tensor([0, 3], dtype=torch.int32)
    >>> layer = (torch.eye(4), torch.zeros(4))  # for queries, keys and values
    >>> out = multi_head_attention(x, x, *layer, *layer, *layer, offsets, offsets, 3, 3, num_heads=2, scale=0.5)
    >>> out[:, 0]
    tensor([2., 2., 2.])
    """
    dtype = autocast_type(x_q.device)
    parameters = (q_weight, q_bias, k_weight, k_bias, v_weight, v_bias)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    settings = (num_heads, scale, dropout_p, seed, site, residual, matmul_takes_tf32())
    x_q, x_k = cast(x_q, dtype), cast(x_k, dtype)
    wide = torch.promote_types(x_q.dtype, torch.float32)
    tables = [None if x is None else x.to(wide) for x in (position_bias, time_bias)]
    bias = (*tables, query_times, key_times)
    args = (x_q, x_k, *parameters, *lengths, *settings, *bias)
    return call("multi_head_attention", x_q.device, backend, *args)[0]  # type: ignore[no-any-return]


def register(namespace: str) -> None:
    """Register the fake implementations and gradients of this op in a library namespace."""
    backward_op = getattr(torch.ops, namespace).multi_head_attention_backward
    is_own = namespace == "ssept_ext"  # or the CUDA kernels' in the tests' emulation

    def fake(x_q: Tensor, x_k: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
        num_heads, residual = rest[10], rest[15] if len(rest) > 15 else True
        wide = torch.promote_types(x_q.dtype, torch.float32)
        heads_q, heads_k = ([x.shape[0], num_heads, x.shape[1] // num_heads] for x in (x_q, x_k))
        max_seqlen_q, dropout_p = rest[8], rest[12] if len(rest) > 12 else 0.0
        # The CPU's kernel makes no keys and values for one query.
        if x_q.device.type == "cpu" and is_own and max_seqlen_q == 1 and not dropout_p:
            heads_k[0] = 0
        return (
            x_q.new_empty(x_q.shape),
            x_q.new_empty(heads_q if residual else (0, *heads_q[1:])),
            x_q.new_empty(heads_q[:2], dtype=wide),
            x_q.new_empty(heads_q),
            *(x_k.new_empty(heads_k) for _ in "kv"),
        )

    def fake_backward(
        grad_out: Tensor, x_q: Tensor, x_k: Tensor, q_weight: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(x_q.dtype, torch.float32)
        width = x_q.shape[1]
        return (
            x_q.new_empty(x_q.shape),
            x_k.new_empty(x_k.shape),
            x_q.new_empty((3 * width, width)),
            x_q.new_empty((3, width), dtype=wide),
            *empty_gradients(*rest[21:23], like=x_q),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.before_seed, ctx.after_seed = inputs[10:15], inputs[16:19]
        out, attended, *others = output
        ctx.mark_non_differentiable(attended, *others)
        ctx.set_materialize_grads(False)
        attended = attended if inputs[17] else out
        seed, bias = inputs[15], inputs[19:]
        ctx.save_for_backward(*inputs[:8], attended, *others, *inputs[8:10], seed, *bias)

    def backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 23
        *tensors, seed, position, time, query_times, key_times = ctx.saved_tensors
        tensors[8] = tensors[8].view(tensors[10].shape)  # `out` is flat
        settings = (*ctx.before_seed, seed, *ctx.after_seed)
        given = (position, time, query_times, key_times)
        x_q, x_k, weight, bias, *of_tables = backward_op(grad_out, *tensors, *settings, *given)
        weights = weight.to(tensors[2].dtype).view(3, *tensors[2].shape).unbind()
        biases = bias.to(tensors[3].dtype).unbind()
        of_layers = [x for layer in zip(weights, biases, strict=True) for x in layer]
        of_bias = [None if x is None else grad for x, grad in zip(given, of_tables, strict=False)]
        return x_q, x_k, *of_layers, *(None,) * 11, *of_bias, None, None

    register_op(
        namespace,
        "multi_head_attention",
        fake=fake,
        fake_backward=fake_backward,
        setup_context=setup_context,
        backward=backward,
    )
