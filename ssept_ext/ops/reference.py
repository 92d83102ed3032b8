"""Every op in plain PyTorch: the specification, the fallback, and the oracle in tests of the kernels.

Imports nothing of this package but `ops.layer_reference` and `ops.ranking_reference`, which are parts of it,
`ops.dropout`, `ops.packing` and checks. Works on any device, through autograd and under `torch.compile`.

Shared conventions: the N tokens of B sequences are packed one after another; sequence b has the tokens
`cu_seqlens[b]` to `cu_seqlens[b + 1] - 1`. Tokens from `cu_seqlens[B]` on are tail padding: they are never
read, and their results are zeros. Id 0 is padding: it has a zero vector and receives no gradient. float16 and bfloat16
are computed in float32. Ids outside a table raise an IndexError on the CPU; on other devices, where checking
would stall the device, they count as padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssept_ext.ops.dropout import check_dropout, dropout, dropout_keep
from ssept_ext.ops.layer_reference import feed_forward as feed_forward
from ssept_ext.ops.layer_reference import gated_residual as gated_residual
from ssept_ext.ops.layer_reference import position_layer_norm as position_layer_norm
from ssept_ext.ops.layer_reference import swiglu as swiglu
from ssept_ext.ops.packing import embedding, lookup, packed, padded, rows_at, sequence_of_token
from ssept_ext.ops.ranking_reference import item_ranks as item_ranks
from ssept_ext.ops.ranking_reference import top_k as top_k
from ssept_ext.ops.reference_checks import (
    check_dims,
    check_ids_type,
    check_loss,
    check_packed,
    check_same_type,
    check_shape,
    check_users,
    checked_ids,
)
from ssept_ext.ops.relative_bias import check_relative_bias, relative_bias


def user_item_embedding(
    item_weight: Tensor,
    user_weight: Tensor | None,
    position_weight: Tensor,
    items: Tensor,
    users: Tensor | None,
    positions: Tensor,
    cu_seqlens: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """`concat(item·sqrt(Di), user·sqrt(Du)) + position`, then dropout: see `ssept_ext.ops`."""
    check_dropout(dropout_p, seed, site)
    check_dims("items", items, 1)
    check_ids_type("items", items)
    check_ids_type("positions", positions)
    check_dims("item_weight", item_weight, 2)
    check_dims("position_weight", position_weight, 2)
    num_tokens = check_packed(items, cu_seqlens)
    check_shape("positions", positions, (num_tokens,))
    user_width = check_users(user_weight, users, cu_seqlens)
    check_shape(
        "position_weight",
        position_weight,
        (position_weight.shape[0], item_weight.shape[1] + user_width),
    )
    check_same_type(
        item_weight=item_weight, user_weight=user_weight, position_weight=position_weight
    )
    sequence, real = sequence_of_token(cu_seqlens, num_tokens)
    x = lookup("items", item_weight, items, real) * item_weight.shape[1] ** 0.5
    if user_weight is not None and users is not None:
        vectors = lookup("users", user_weight, users) * user_width**0.5
        x = torch.cat([x, rows_at(vectors, sequence, real)], 1)
    positions = checked_ids("positions", positions, position_weight.shape[0], real)
    x = torch.where(real[:, None], x + embedding(positions, position_weight), 0)
    return dropout(x, dropout_p, seed, site)


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
    allow_tf32: bool = False,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_times: Tensor | None = None,
    key_times: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention within each sequence: see `ssept_ext.ops`.

    The dropout row of query token i and head h is `i * H + h`; its column is the key's index in its sequence.
    `allow_tf32` has no effect here, only on kernels: PyTorch's products follow `torch.backends.cuda.matmul`.
    """
    check_dropout(dropout_p, seed, site)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_dims(name, x, 3)
    if not 1 <= q.shape[2] <= 256:
        raise ValueError(f"the head size of q must be in 1..256, got {q.shape[2]}")
    check_shape("k", k, (k.shape[0], q.shape[1], q.shape[2]))
    check_shape("v", v, tuple(k.shape))
    check_same_type(q=q, k=k, v=v)
    check_packed(q, cu_seqlens_q, "cu_seqlens_q", max_seqlen_q)
    check_packed(k, cu_seqlens_k, "cu_seqlens_k", max_seqlen_k)
    check_shape("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape))
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if not torch.compiler.is_compiling():  # no minimum of a size that torch.export leaves open
        max_seqlen_q, max_seqlen_k = min(max_seqlen_q, q.shape[0]), min(max_seqlen_k, k.shape[0])

    bias = (position_bias, time_bias)
    check_relative_bias(q, k, max_seqlen_k, *bias, query_times, key_times)

    wide = torch.promote_types(q.dtype, torch.float32)
    query = padded(q.to(wide), cu_seqlens_q, max_seqlen_q).transpose(1, 2)
    key = padded(k.to(wide), cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    value = padded(v.to(wide), cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    # Query i of nq sees the keys up to nk - nq + i: the mask is aligned to the bottom-right corner.
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    last_key = torch.arange(max_seqlen_q, device=q.device) + (lengths_k - lengths_q)[:, None]
    visible = torch.arange(max_seqlen_k, device=q.device) <= last_key[..., None]
    visible &= torch.arange(max_seqlen_q, device=q.device)[:, None] < lengths_q[:, None, None]
    visible = visible[:, None]  # (B, 1, Tq, Tk)

    between = None
    if query_times is not None and key_times is not None:
        of_queries = padded(query_times, cu_seqlens_q, max_seqlen_q)
        between = of_queries[:, :, None] - padded(key_times, cu_seqlens_k, max_seqlen_k)[:, None]
    distances = last_key[..., None] - torch.arange(max_seqlen_k, device=q.device)
    scores = query @ key.transpose(-1, -2) * scale + relative_bias(*bias, distances, between)
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    # A query that sees no key has lse = -inf: subtract 0 there, so that its weights are 0, not NaN.
    weights = (scores - lse.masked_fill(lse.isneginf(), 0)).exp()
    if dropout_p > 0:
        assert seed is not None
        token = cu_seqlens_q[:-1, None].long() + torch.arange(max_seqlen_q, device=q.device)
        heads = torch.arange(q.shape[1], device=q.device)
        rows = token[:, None, :] * q.shape[1] + heads[:, None]
        keep = dropout_keep(rows, max_seqlen_k, dropout_p, seed, site)
        weights = torch.where(keep, weights / (1 - dropout_p), 0)
    out = packed((weights @ value).transpose(1, 2), cu_seqlens_q, q.shape[0])
    lse = packed(lse.squeeze(-1).transpose(1, 2), cu_seqlens_q, q.shape[0])
    return out.to(q.dtype), lse.detach()


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
    allow_tf32: bool = False,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_times: Tensor | None = None,
    key_times: Tensor | None = None,
) -> tuple[Tensor]:
    """`causal_attention` of linear projections, plus x_q as a `residual`: see `ssept_ext.ops`.

    Returns the first of the kernels' outputs; the others are for their backward.
    """
    check_dims("x_q", x_q, 2)
    width = x_q.shape[1]
    check_shape("x_k", x_k, (*x_k.shape[:1], width))
    check_same_type(x_q=x_q, x_k=x_k)
    if num_heads < 1 or width % num_heads or width == 0:
        raise ValueError(f"num_heads must divide the width of x_q, {width}, got {num_heads}")
    layers = {"q": (q_weight, q_bias), "k": (k_weight, k_bias), "v": (v_weight, v_bias)}
    for name, (weight, bias) in layers.items():
        check_shape(f"{name}_weight", weight, (width, width))
        check_shape(f"{name}_bias", bias, (width,))
        if not {weight.dtype, bias.dtype} <= {x_q.dtype, torch.float32}:
            raise ValueError(
                f"{name}_weight and {name}_bias must be {x_q.dtype} or float32, got {weight.dtype} and {bias.dtype}"
            )

    wide = torch.promote_types(x_q.dtype, torch.float32)
    sources = {"q": x_q, "k": x_k, "v": x_k}
    q, k, v = (
        F.linear(sources[name].to(wide), weight.to(x_q.dtype).to(wide), bias.to(wide)).view(
            -1, num_heads, width // num_heads
        )
        for name, (weight, bias) in layers.items()
    )
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    settings = (*lengths, scale, dropout_p, seed, site, allow_tf32)
    relative = (position_bias, time_bias, query_times, key_times)
    attended, _ = causal_attention(q, k, v, *settings, *relative)
    out = attended.flatten(1)
    if residual:
        _, real = sequence_of_token(cu_seqlens_q, x_q.shape[0])
        out = torch.where(real[:, None], out + x_q, 0)
    return (out.to(x_q.dtype),)


def sampled_logits(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    items: Tensor,
    users: Tensor | None,
    cu_seqlens: Tensor,
) -> Tensor:
    """Score K items for each token: see `ssept_ext.ops`."""
    check_dims("items", items, 2)
    logits = _logits(hidden, item_weight, user_weight, {"items": items}, users, cu_seqlens)
    return logits.to(item_weight.dtype)


def sampled_loss(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    positives: Tensor,
    negatives: Tensor,
    users: Tensor | None,
    cu_seqlens: Tensor,
    loss: str,
    beta: float = 1.0,
    log_q: Tensor | None = None,
    corrects_positive: bool = True,
) -> Tensor:
    """Average a loss of sampled logits over the tokens that have a target: see `ssept_ext.ops`."""
    check_loss(loss, beta)
    check_dims("negatives", negatives, 2)
    check_shape("positives", positives, (negatives.shape[0],))
    named = {"positives": positives[:, None], "negatives": negatives}
    logits = _logits(hidden, item_weight, user_weight, named, users, cu_seqlens)
    rows = item_weight.shape[0]
    _, real = sequence_of_token(cu_seqlens, len(positives))
    items = torch.cat(
        [checked_ids(n, x, rows, real[:, None], padding=True) for n, x in named.items()], 1
    )
    return _mean_loss(logits, items, rows, loss, beta, log_q, corrects_positive)


def shared_loss(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    positives: Tensor,
    negatives: Tensor,
    users: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    loss: str,
    beta: float = 1.0,
    log_q: Tensor | None = None,
    corrects_positive: bool = True,
) -> Tensor:
    """Average a loss of logits of negatives that a sequence or all tokens share: see `ssept_ext.ops`."""
    check_loss(loss, beta)
    check_dims("positives", positives, 1)
    check_dims("negatives", negatives, 2)
    check_ids_type("negatives", negatives)
    num_tokens = check_packed(positives, cu_seqlens, max_seqlen=max_seqlen)
    num_sequences = cu_seqlens.shape[0] - 1
    if negatives.shape[0] not in (1, num_sequences):
        raise ValueError(
            f"negatives must have 1 or {num_sequences} rows, got shape {tuple(negatives.shape)}"
        )
    named = {"positives": positives[:, None]}
    of_positives = _logits(hidden, item_weight, user_weight, named, users, cu_seqlens)
    rows, item_width = item_weight.shape
    sequence, real = sequence_of_token(cu_seqlens, num_tokens)
    wide = of_positives.dtype
    of_items = torch.where(real[:, None], hidden[:, :item_width], 0).to(wide)
    vectors = lookup("negatives", item_weight, negatives).to(wide).transpose(1, 2)
    sets = checked_ids("negatives", negatives, rows, padding=True)
    if negatives.shape[0] == num_sequences:
        products = padded(of_items, cu_seqlens, max_seqlen) @ vectors
        of_negatives = packed(products, cu_seqlens, num_tokens)
        sets = rows_at(sets, sequence, real)
    else:
        of_negatives = of_items @ vectors[0]
    if user_weight is not None and users is not None:
        user = lookup("users", user_weight, users).to(wide) * user_weight.shape[1] ** 0.5
        of_users = torch.where(real[:, None], hidden[:, item_width:], 0).to(wide)
        of_negatives = of_negatives + (of_users * rows_at(user, sequence, real)).sum(
            1, keepdim=True
        )
    targets = checked_ids("positives", positives, rows, real, padding=True)[:, None]
    sets = sets.expand(num_tokens, -1)
    left_out = (sets == 0) | (sets == targets)
    of_negatives = of_negatives.masked_fill(left_out, -torch.inf)
    logits, items = torch.cat([of_positives, of_negatives], 1), torch.cat([targets, sets], 1)
    return _mean_loss(logits, items, rows, loss, beta, log_q, corrects_positive)


def _mean_loss(
    logits: Tensor,
    items: Tensor,
    rows: int,
    loss: str,
    beta: float,
    log_q: Tensor | None,
    corrects_positive: bool,
) -> Tensor:
    """Average a loss of (N, 1 + K) logits of items, the positive's in column 0, over those whose positive is not 0."""
    num_negatives = max(items.shape[1] - 1, 1)
    if log_q is not None:
        check_shape("log_q", log_q, (rows,))
        if log_q.dtype != logits.dtype:
            raise ValueError(f"log_q must be {logits.dtype}, got {log_q.dtype}")
        drawn = embedding(items, log_q.detach()[:, None])[..., 0]
        if not corrects_positive:
            drawn = F.pad(drawn[:, 1:] + math.log(num_negatives), (1, 0))
        logits = logits - drawn
    if loss == "bce":
        # softplus(x) is -logsigmoid(-x); torch's own softplus is cruder beyond 20.
        of_tokens = -beta * F.logsigmoid(logits[:, 0]) - F.logsigmoid(-logits[:, 1:]).sum(1)
    elif loss == "bpr":
        of_tokens = -F.logsigmoid(logits[:, :1] - logits[:, 1:]).sum(1) / num_negatives
    else:
        of_tokens = logits.logsumexp(1) - logits[:, 0]
    has_target = items[:, 0] != 0
    return torch.where(has_target, of_tokens, 0).sum() / has_target.sum().clamp(min=1)


def _logits(
    hidden: Tensor,
    item_weight: Tensor,
    user_weight: Tensor | None,
    named: dict[str, Tensor],
    users: Tensor | None,
    cu_seqlens: Tensor,
) -> Tensor:
    """Score the items of one or several named tensors, side by side, in float32 or wider."""
    for name, ids in named.items():
        check_ids_type(name, ids)
        num_tokens = check_packed(ids, cu_seqlens)
    user_width = check_users(user_weight, users, cu_seqlens)
    check_dims("item_weight", item_weight, 2)
    item_width = item_weight.shape[1]
    check_shape("hidden", hidden, (num_tokens, item_width + user_width))
    check_same_type(hidden=hidden, item_weight=item_weight, user_weight=user_weight)
    sequence, real = sequence_of_token(cu_seqlens, num_tokens)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    hidden = torch.where(real[:, None], hidden, 0).to(wide)
    items = torch.cat(list(named.values()), 1)
    found = [lookup(name, item_weight, ids, real[:, None]) for name, ids in named.items()]
    vectors = torch.cat(found, 1).to(wide)
    logits = torch.einsum("nd,nkd->nk", hidden[:, :item_width], vectors)
    if user_weight is not None and users is not None:
        user = lookup("users", user_weight, users).to(wide) * user_width**0.5
        logits = logits + (hidden[:, item_width:] * rows_at(user, sequence, real)).sum(
            1, keepdim=True
        )
    scored = (items > 0) & (items < item_weight.shape[0]) & real[:, None]
    return torch.where(scored, logits, 0)
