"""Arguments of `causal_attention`, and what it should compute by plain loops and in plain PyTorch."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from support.implementations import ALL
from support.samples import Ragged

from ssept_ext.ops.dropout import dropout_keep
from ssept_ext.ops.relative_bias import TIME_BUCKETS, time_buckets

every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)


every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)


RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 9, 2))


@dataclass(frozen=True)
class Arguments:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    dropout_p: float = 0.0
    seed: torch.Tensor | None = None
    site: int = 0
    allow_tf32: bool = False
    position_bias: torch.Tensor | None = None
    time_bias: torch.Tensor | None = None
    query_times: torch.Tensor | None = None
    key_times: torch.Tensor | None = None

    def call(self, op):
        return op(*vars(self).values())

    def call_public(self, op):
        """`ops.causal_attention` decides on TF32 by itself."""
        return op(**{name: x for name, x in vars(self).items() if name != "allow_tf32"})

    def to(self, device):
        moved = {n: x.to(device) for n, x in vars(self).items() if isinstance(x, torch.Tensor)}
        return replace(self, **moved)


def attention(implementation):
    """The op, for tensors on the CPU: they go to the implementation's device and come back."""

    def call(*args):
        moved = [x.to(implementation.device) if isinstance(x, torch.Tensor) else x for x in args]
        out, lse = implementation.op("causal_attention")(*moved)
        return out.cpu(), lse.cpu()

    return call


def arguments(ragged=RAGGED_BATCH, heads=2, head_size=5, queries=None, dtype=torch.float64):
    """Self-attention, or with `queries` the given number of newest queries for each sequence."""
    generator = torch.Generator().manual_seed(1)
    ragged_q = ragged if queries is None else Ragged("", queries)

    def normal(n):
        shape = (n, heads, head_size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return Arguments(
        q=normal(ragged_q.num_tokens),
        k=normal(ragged.num_tokens),
        v=normal(ragged.num_tokens),
        cu_seqlens_q=ragged_q.cu_seqlens(),
        cu_seqlens_k=ragged.cu_seqlens(),
        max_seqlen_q=ragged_q.max_seqlen,
        max_seqlen_k=ragged.max_seqlen,
        scale=0.4,
    )


def with_bias(a, position=True, time=True, unit=3600):
    """Random biases, and times in the order of the keys; each query comes up to `unit` after its own key."""
    generator = torch.Generator().manual_seed(2)
    heads, num_keys = a.q.shape[1], a.k.shape[0]
    wide = torch.promote_types(a.q.dtype, torch.float32)
    if position:
        table = torch.randn(heads, max(a.max_seqlen_k, 1) + 2, generator=generator, dtype=wide)
        a = replace(a, position_bias=table)
    if time:
        key_times = torch.randint(unit * 1000, (num_keys,), generator=generator).sort().values
        query_times = torch.randint(unit, (a.q.shape[0],), generator=generator)
        newest = a.cu_seqlens_k[1:] - a.cu_seqlens_q[1:]  # of a sequence's last query
        for b, (begin, end) in enumerate(pairwise(a.cu_seqlens_q.tolist())):
            own = (torch.arange(begin, end) + newest[b]).clamp(0, max(num_keys - 1, 0))
            query_times[begin:end] += key_times[own] if num_keys else 0
        table = torch.randn(heads, TIME_BUCKETS, generator=generator, dtype=wide)
        a = replace(a, time_bias=table, query_times=query_times, key_times=key_times)
    return a


def by_plain_loops(a):
    """Token by token, from the definition; dropout by asking for each weight."""
    out = torch.zeros_like(a.q)
    lse = torch.zeros(a.q.shape[:2], dtype=a.q.dtype)
    heads = a.q.shape[1]
    for b in range(len(a.cu_seqlens_q) - 1):
        q0, q1 = a.cu_seqlens_q[b : b + 2].tolist()
        k0, k1 = a.cu_seqlens_k[b : b + 2].tolist()
        for i in range(q0, q1):
            seen = (k1 - k0) - (q1 - i) + 1  # the newest query sees every key
            if seen <= 0:
                lse[i] = -torch.inf
                continue
            for h in range(heads):
                scores = a.k[k0 : k0 + seen, h] @ a.q[i, h] * a.scale
                if a.position_bias is not None:
                    scores = scores + a.position_bias[h, :seen].flip(0)
                if a.time_bias is not None:
                    between = a.query_times[i] - a.key_times[k0 : k0 + seen]
                    scores = scores + a.time_bias[h, time_buckets(between)]
                lse[i, h] = scores.logsumexp(0)
                weights = scores.softmax(0)
                if a.dropout_p > 0:
                    row = torch.tensor(i * heads + h)
                    keep = dropout_keep(row, seen, a.dropout_p, a.seed, a.site)
                    weights = weights * keep / (1 - a.dropout_p)
                out[i, h] = weights @ a.v[k0 : k0 + seen, h]
    return out, lse


def gradients(a, op, grad):
    """Output, and the gradients of q, k and v, and of the biases that there are."""
    names = ("q", "k", "v", "position_bias", "time_bias")
    given = {n: x for n in names if (x := getattr(a, n)) is not None}
    leaves = {n: x.detach().clone().requires_grad_() for n, x in given.items()}
    out, _ = replace(a, **leaves).call(op)
    return out, *torch.autograd.grad(out, list(leaves.values()), grad)


def in_plain_pytorch(a, matmul=torch.matmul):
    """An op that goes sequence by sequence, as one would write it without thinking of precision."""

    def op(q, k, v, *_):
        heads = q.shape[1]
        outputs = [q[:0]]
        for begin, end in pairwise(a.cu_seqlens_k.tolist()):
            queries, keys, values = (x[begin:end].transpose(0, 1) for x in (q, k, v))
            scores = matmul(queries, keys.transpose(1, 2)) * a.scale
            future = torch.ones(end - begin, end - begin).triu(1).bool()
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            if a.dropout_p > 0:
                rows = torch.arange(begin, end) * heads + torch.arange(heads)[:, None]
                keep = dropout_keep(rows, end - begin, a.dropout_p, a.seed, a.site)
                weights = weights * keep / (1 - a.dropout_p)
            outputs.append(matmul(weights, values).transpose(0, 1))
        return torch.cat(outputs), None

    return op


def converted(a, dtype):
    return replace(a, q=a.q.to(dtype), k=a.k.to(dtype), v=a.v.to(dtype))
