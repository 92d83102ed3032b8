"""A small valid call of every op, with any extents: what tests of all ops start from."""

from dataclasses import dataclass
from typing import Any

import torch

from ssept_ext import ops
from ssept_ext._extension import IN_PLACE_OPS, RANKING_OPS
from ssept_ext.ops.relative_bias import TIME_BUCKETS


@dataclass(frozen=True)
class Extents:
    """Sizes of a call's tensors, and what else is the same for all ops."""

    lengths: tuple[int, ...] = (3, 0, 1)
    spare: int = 0
    item_rows: int = 5
    user_rows: int = 4
    position_rows: int = 6
    item_width: int = 3
    user_width: int = 2
    num_items: int = 2
    heads: int = 2
    dropout_p: float = 0.0
    dtype: torch.dtype = torch.float64

    @property
    def tokens(self):
        return sum(self.lengths) + self.spare

    @property
    def width(self):
        return self.item_width + self.user_width

    @property
    def wide(self):
        return torch.promote_types(self.dtype, torch.float32)


class Draws:
    """Numbers of one generator, and tables and ids of them that several ops take."""

    def __init__(self, size: Extents):
        self._size = size
        self._generator = torch.Generator().manual_seed(1)
        self.tables = {
            "item_weight": self.normal(size.item_rows, size.item_width),
            "user_weight": self.normal(size.user_rows, size.user_width),
        }
        self.users = self.ids(size.user_rows, len(size.lengths))
        self.bias = {
            "position_bias": self.normal(size.heads, max(size.tokens, 1)).to(size.wide),
            "time_bias": self.normal(size.heads, TIME_BUCKETS).to(size.wide),
            "query_times": torch.arange(size.tokens) * 100 + 7,
            "key_times": torch.arange(size.tokens) * 100,
        }
        self.dropout = {"dropout_p": size.dropout_p, "seed": torch.tensor([7]), "site": 3}
        self.cu_seqlens = self.offsets().to(torch.int32)
        self.sequences = {
            "cu_seqlens_q": self.cu_seqlens,
            "cu_seqlens_k": self.cu_seqlens,
            "max_seqlen_q": max(size.lengths, default=0),
            "max_seqlen_k": max(size.lengths, default=0),
        }

    def normal(self, *shape):
        x = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return x.to(self._size.dtype)

    def ids(self, rows, *shape):
        return torch.randint(max(rows, 1), shape, generator=self._generator)

    def some_ids(self, rows, count):
        """Distinct ones, ascending, as many as there are up to `count`."""
        drawn = torch.randperm(max(rows - 1, 0), generator=self._generator)[:count] + 1
        return drawn.sort().values

    def offsets(self):
        return torch.tensor([0, *self._size.lengths]).cumsum(0)


def of_user_item_embedding(size, draw):
    return {
        **draw.tables,
        "position_weight": draw.normal(size.position_rows, size.width),
        "items": draw.ids(size.item_rows, size.tokens),
        "users": draw.users,
        "positions": draw.ids(size.position_rows, size.tokens),
        "cu_seqlens": draw.cu_seqlens,
        **draw.dropout,
    }


def of_position_layer_norm(size, draw):
    return {
        "x": draw.normal(size.tokens, size.width),
        "gamma": draw.normal(size.position_rows, size.width),
        "beta": draw.normal(size.position_rows, size.width),
        "positions": draw.ids(size.position_rows, size.tokens),
        "cu_seqlens": draw.cu_seqlens,
        "eps": 1e-8,
    }


def of_causal_attention(size, draw):
    return {
        **{name: draw.normal(size.tokens, size.heads, size.item_width) for name in "qkv"},
        **draw.sequences,
        "scale": 0.4,
        **draw.dropout,
        **draw.bias,
    }


def of_multi_head_attention(size, draw):
    inner = size.heads * size.item_width
    layers = {
        f"{of}_{kind}": draw.normal(*shape)
        for of in "qkv"
        for kind, shape in (("weight", (inner, inner)), ("bias", (inner,)))
    }
    return {
        "x_q": draw.normal(size.tokens, inner),
        "x_k": draw.normal(size.tokens, inner),
        **layers,
        **draw.sequences,
        "num_heads": size.heads,
        "scale": 0.4,
        **draw.dropout,
        "residual": True,
        **draw.bias,
    }


def of_feed_forward(size, draw):
    return {
        "x": draw.normal(size.tokens, size.width),
        "weight1": draw.normal(size.num_items, size.width),
        "bias1": draw.normal(size.num_items),
        "weight2": draw.normal(size.width, size.num_items),
        "bias2": draw.normal(size.width),
        **draw.dropout,
        "residual": draw.normal(size.tokens, size.width),
    }


def of_gated_residual(size, draw):
    return {
        name: draw.normal(size.tokens, size.width) for name in ("x", "y", "gate")
    } | draw.dropout


def of_swiglu(size, draw):
    return {"u": draw.normal(size.tokens, 2 * size.width), **draw.dropout}


def of_sampled_logits(size, draw):
    return {
        "hidden": draw.normal(size.tokens, size.width),
        **draw.tables,
        "items": draw.ids(size.item_rows, size.tokens, size.num_items),
        "users": draw.users,
        "cu_seqlens": draw.cu_seqlens,
    }


def of_sampled_loss(size, draw):
    return of_loss(size, draw, size.tokens)


def of_shared_loss(size, draw):
    longest = max(size.lengths, default=0)
    return {**of_loss(size, draw, len(size.lengths)), "max_seqlen": longest}


def of_loss(size, draw, groups):
    """`groups` of negatives: one for each token or sequence."""
    return {
        "hidden": draw.normal(size.tokens, size.width),
        **draw.tables,
        "positives": draw.ids(size.item_rows, size.tokens),
        "negatives": draw.ids(size.item_rows, groups, size.num_items),
        "users": draw.users,
        "cu_seqlens": draw.cu_seqlens,
        "loss": "sampled_softmax",
        "beta": 0.5,
        "log_q": draw.normal(size.item_rows).to(size.wide),
        "corrects_positive": True,
    }


def of_ranking(size, draw):
    return {
        "queries": draw.normal(len(size.lengths), size.item_width).to(size.wide),
        "table": draw.tables["item_weight"],
        "num_items": max(size.item_rows - 1, 0),
        "seen_items": draw.ids(size.item_rows, sum(size.lengths)),
        "seen_offsets": draw.offsets(),
        "scale": draw.normal(size.item_rows).to(size.wide),
    }


def of_top_k(size, draw):
    candidates = torch.arange(1, max(size.item_rows, 1))[::2]
    k = min(size.num_items, len(candidates))
    return {**of_ranking(size, draw), "k": k, "candidates": candidates}


def of_item_ranks(size, draw):
    targets = draw.ids(size.item_rows, len(size.lengths))
    return {**of_ranking(size, draw), "targets": targets, "target_scores": None}


def of_row_update(size, draw):
    """Of whole rows; ids end with one 0 for each spare token."""
    ids = torch.cat([draw.some_ids(size.item_rows, size.num_items), torch.zeros(size.spare).long()])
    return {
        "table": draw.tables["item_weight"],
        "ids": ids,
        "grad": draw.normal(len(ids), size.item_width),
        "learning_rate": torch.tensor(0.1),
        "eps": 1e-8,
        "weight_decay": 0.1,
    }


def of_lazy_adam(size, draw):
    return {
        **of_row_update(size, draw),
        "exp_avg": draw.normal(size.item_rows, size.item_width),
        "exp_avg_sq": draw.normal(size.item_rows, size.item_width).abs(),
        "step": torch.tensor(3.0),
        "betas": (0.9, 0.98),
    }


def of_rowwise_adagrad(size, draw):
    sums = draw.normal(size.item_rows).abs()
    return {**of_row_update(size, draw), "sum_of_squares": sums}


MAKERS = {
    "user_item_embedding": of_user_item_embedding,
    "position_layer_norm": of_position_layer_norm,
    "causal_attention": of_causal_attention,
    "multi_head_attention": of_multi_head_attention,
    "feed_forward": of_feed_forward,
    "gated_residual": of_gated_residual,
    "swiglu": of_swiglu,
    "sampled_logits": of_sampled_logits,
    "sampled_loss": of_sampled_loss,
    "shared_loss": of_shared_loss,
    "top_k": of_top_k,
    "item_ranks": of_item_ranks,
    "lazy_adam": of_lazy_adam,
    "rowwise_adagrad": of_rowwise_adagrad,
}


def arguments(op: str, **extents: Any) -> dict[str, Any]:
    """Arguments by name, of the `Extents`; ids are of the tables, or all 0 where those have no rows."""
    size = Extents(**extents)
    return MAKERS[op](size, Draws(size))


def call(op: str, given: dict[str, Any], backend: str) -> Any:
    return getattr(ops, op)(**given, backend=backend)


def with_gradients(op: str, given: dict[str, Any], backend: str) -> list[torch.Tensor]:
    """All outputs, and the gradients of all floating tensors, for a gradient of ones; or what is changed in place."""
    if op in RANKING_OPS:
        return list(call(op, given, backend))
    if op in IN_PLACE_OPS:
        given = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
        call(op, given, backend)
        return [x for x in given.values() if isinstance(x, torch.Tensor)]
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in given.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    }
    out = call(op, given | leaves, backend)
    out = out if isinstance(out, tuple) else (out,)
    return [*out, *torch.autograd.grad(out[0].sum(), list(leaves.values()), allow_unused=True)]
