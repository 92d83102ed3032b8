"""Every op in plain PyTorch: the specification, the fallback, and the oracle in tests of the kernels.

Imports nothing of this package but `ops.dropout`. Works on any device, through autograd and under `torch.compile`.

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
from ssept_ext.ops.reference_checks import (
    check_dims,
    check_ids_type,
    check_packed,
    check_same_type,
    check_shape,
    check_users,
    checked_ids,
)


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
    sequence, real = _sequence_of_token(cu_seqlens, num_tokens)
    x = _lookup("items", item_weight, items, real) * item_weight.shape[1] ** 0.5
    if user_weight is not None and users is not None:
        vectors = _lookup("users", user_weight, users) * user_width**0.5
        x = torch.cat([x, _rows(vectors, sequence, real)], 1)
    positions = checked_ids("positions", positions, position_weight.shape[0], real)
    x = torch.where(real[:, None], x + _embedding(positions, position_weight), 0)
    return dropout(x, dropout_p, seed, site)


def position_layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    eps: float = 1e-8,
) -> Tensor:
    """Layer norm with its own gamma and beta at each position: see `ssept_ext.ops`."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    check_dims("x", x, 2)
    check_dims("gamma", gamma, 2)
    num_tokens = check_packed(x, cu_seqlens)
    check_shape("gamma", gamma, (gamma.shape[0], x.shape[1]))
    check_shape("beta", beta, tuple(gamma.shape))
    check_ids_type("positions", positions)
    check_shape("positions", positions, (num_tokens,))
    check_same_type(x=x, gamma=gamma, beta=beta)
    _, real = _sequence_of_token(cu_seqlens, num_tokens)
    positions = checked_ids("positions", positions, gamma.shape[0], real)
    wide = torch.promote_types(x.dtype, torch.float32)
    real = real[:, None]
    normal = F.layer_norm(torch.where(real, x, 0).to(wide), x.shape[1:], eps=eps)
    normal = torch.where(real, normal, 0)  # NaN where eps is 0
    out = _embedding(positions, gamma) * normal + _embedding(positions, beta)
    return torch.where(real, out, 0).to(x.dtype)


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

    wide = torch.promote_types(q.dtype, torch.float32)
    query = _padded(q.to(wide), cu_seqlens_q, max_seqlen_q).transpose(1, 2)
    key = _padded(k.to(wide), cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    value = _padded(v.to(wide), cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    # Query i of nq sees the keys up to nk - nq + i: the mask is aligned to the bottom-right corner.
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    last_key = torch.arange(max_seqlen_q, device=q.device) + (lengths_k - lengths_q)[:, None]
    visible = torch.arange(max_seqlen_k, device=q.device) <= last_key[..., None]
    visible &= torch.arange(max_seqlen_q, device=q.device)[:, None] < lengths_q[:, None, None]
    visible = visible[:, None]  # (B, 1, Tq, Tk)

    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~visible, -torch.inf)
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
    out = _packed((weights @ value).transpose(1, 2), cu_seqlens_q, q.shape[0])
    lse = _packed(lse.squeeze(-1).transpose(1, 2), cu_seqlens_q, q.shape[0])
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
    allow_tf32: bool = False,
) -> tuple[Tensor]:
    """`causal_attention` of linear projections, plus x_q: see `ssept_ext.ops`.

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
    attended, _ = causal_attention(q, k, v, *lengths, scale, dropout_p, seed, site)
    _, real = _sequence_of_token(cu_seqlens_q, x_q.shape[0])
    out = torch.where(real[:, None], attended.flatten(1) + x_q, 0).to(x_q.dtype)
    return (out,)


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """Two linear layers with ReLU, dropouts and a residual: see `ssept_ext.ops`.

    Also returns what the first dropout gives, (N, C), without gradient.
    """
    check_dropout(dropout_p, seed, site)
    check_dropout(dropout_p, seed, site + 1)
    check_dims("x", x, 2)
    check_dims("weight1", weight1, 2)
    inner, width = weight1.shape[0], x.shape[1]
    check_shape("weight1", weight1, (inner, width))
    check_shape("bias1", bias1, (inner,))
    check_shape("weight2", weight2, (width, inner))
    check_shape("bias2", bias2, (width,))
    check_same_type(x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden = F.relu(F.linear(x.to(wide), weight1.to(wide), bias1.to(wide)))
    hidden = dropout(hidden, dropout_p, seed, site)
    y = F.linear(hidden, weight2.to(wide), bias2.to(wide))
    out = dropout(y, dropout_p, seed, site + 1) + x
    return out.to(x.dtype), hidden.to(x.dtype).detach()


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
    if loss not in ("bce", "bpr", "sampled_softmax"):
        raise ValueError(f"loss must be bce, bpr or sampled_softmax, got {loss}")
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, got {beta}")
    check_dims("negatives", negatives, 2)
    check_shape("positives", positives, (negatives.shape[0],))
    named = {"positives": positives[:, None], "negatives": negatives}
    logits = _logits(hidden, item_weight, user_weight, named, users, cu_seqlens)
    rows, num_negatives = item_weight.shape[0], max(negatives.shape[1], 1)
    _, real = _sequence_of_token(cu_seqlens, len(positives))
    items = torch.cat(
        [checked_ids(n, x, rows, real[:, None], padding=True) for n, x in named.items()], 1
    )
    if log_q is not None:
        check_shape("log_q", log_q, (rows,))
        if log_q.dtype != logits.dtype:
            raise ValueError(f"log_q must be {logits.dtype}, got {log_q.dtype}")
        drawn = _embedding(items, log_q.detach()[:, None])[..., 0]
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
    sequence, real = _sequence_of_token(cu_seqlens, num_tokens)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    hidden = torch.where(real[:, None], hidden, 0).to(wide)
    items = torch.cat(list(named.values()), 1)
    found = [_lookup(name, item_weight, ids, real[:, None]) for name, ids in named.items()]
    vectors = torch.cat(found, 1).to(wide)
    logits = torch.einsum("nd,nkd->nk", hidden[:, :item_width], vectors)
    if user_weight is not None and users is not None:
        user = _lookup("users", user_weight, users).to(wide) * user_width**0.5
        logits = logits + (hidden[:, item_width:] * _rows(user, sequence, real)).sum(
            1, keepdim=True
        )
    scored = (items > 0) & (items < item_weight.shape[0]) & real[:, None]
    return torch.where(scored, logits, 0)


def _sequence_of_token(cu_seqlens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(N,) sequence of each token, and (N,) bool: False for tail padding."""
    token = torch.arange(num_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    return sequence, token < cu_seqlens[-1]


def _rows(x: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """`x[index]` where valid, zeros elsewhere, for any index there; x may be empty."""
    x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    return x[torch.where(valid, index, x.shape[0] - 1)]


def _padded(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(N, ...) packed -> (B, max_seqlen, ...) with zeros after each sequence's last token."""
    index = cu_seqlens[:-1, None] + torch.arange(max_seqlen, device=x.device)
    return _rows(x, index.long(), index < cu_seqlens[1:, None])


def _packed(x: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """(B, max_seqlen, ...) -> (N, ...), zeros for tail padding: the inverse of `_padded`."""
    sequence, real = _sequence_of_token(cu_seqlens, num_tokens)
    start = torch.cat([cu_seqlens, cu_seqlens[-1:]])[sequence]
    offset = torch.arange(num_tokens, device=x.device) - start
    return _rows(x.flatten(0, 1), sequence * x.shape[1] + offset, real)


def _lookup(name: str, weight: Tensor, ids: Tensor, real: Tensor | None = None) -> Tensor:
    """Look up rows of a table; id 0, and ids where `real` is False, give zeros without gradient."""
    ids = checked_ids(name, ids, weight.shape[0], real, padding=True)
    return torch.where((ids != 0).unsqueeze(-1), _embedding(ids, weight), 0)


def _embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Return `weight[ids]`; a table without rows, where all ids are padding, counts as one row of zeros."""
    return F.embedding(ids, weight if weight.shape[0] else weight.sum(0, keepdim=True))
