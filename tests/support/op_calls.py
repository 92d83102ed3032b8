"""A small valid call of every op, with any extents: what tests of all ops start from."""

from typing import Any

import torch

from ssept_ext import ops
from ssept_ext._extension import IN_PLACE_OPS, RANKING_OPS
from ssept_ext.ops.relative_bias import TIME_BUCKETS


def arguments(
    op: str,
    lengths: tuple[int, ...] = (3, 0, 1),
    spare: int = 0,
    item_rows: int = 5,
    user_rows: int = 4,
    position_rows: int = 6,
    item_width: int = 3,
    user_width: int = 2,
    num_items: int = 2,
    heads: int = 2,
    dropout_p: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments by name; ids are of the tables, or all 0 where those have no rows."""
    generator = torch.Generator().manual_seed(1)
    tokens = sum(lengths) + spare
    width = item_width + user_width

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def ids(rows, *shape):
        return torch.randint(max(rows, 1), shape, generator=generator)

    wide = torch.promote_types(dtype, torch.float32)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tables = {
        "item_weight": normal(item_rows, item_width),
        "user_weight": normal(user_rows, user_width),
    }
    users = ids(user_rows, len(lengths))
    dropout = {"dropout_p": dropout_p, "seed": torch.tensor([7]), "site": 3}
    bias = {
        "position_bias": normal(heads, max(tokens, 1)).to(wide),
        "time_bias": normal(heads, TIME_BUCKETS).to(wide),
        "query_times": torch.arange(tokens) * 100 + 7,
        "key_times": torch.arange(tokens) * 100,
    }
    match op:
        case "user_item_embedding":
            return {
                **tables,
                "position_weight": normal(position_rows, width),
                "items": ids(item_rows, tokens),
                "users": users,
                "positions": ids(position_rows, tokens),
                "cu_seqlens": cu_seqlens,
                **dropout,
            }
        case "position_layer_norm":
            return {
                "x": normal(tokens, width),
                "gamma": normal(position_rows, width),
                "beta": normal(position_rows, width),
                "positions": ids(position_rows, tokens),
                "cu_seqlens": cu_seqlens,
                "eps": 1e-8,
            }
        case "causal_attention":
            return {
                **{name: normal(tokens, heads, item_width) for name in "qkv"},
                "cu_seqlens_q": cu_seqlens,
                "cu_seqlens_k": cu_seqlens,
                "max_seqlen_q": max(lengths, default=0),
                "max_seqlen_k": max(lengths, default=0),
                "scale": 0.4,
                **dropout,
                **bias,
            }
        case "feed_forward":
            return {
                "x": normal(tokens, width),
                "weight1": normal(num_items, width),
                "bias1": normal(num_items),
                "weight2": normal(width, num_items),
                "bias2": normal(width),
                **dropout,
                "residual": normal(tokens, width),
            }
        case "gated_residual":
            return {name: normal(tokens, width) for name in ("x", "y", "gate")} | dropout
        case "swiglu":
            return {"u": normal(tokens, 2 * width), **dropout}
        case "multi_head_attention":
            inner = heads * item_width
            layers = {
                f"{of}_{kind}": normal(*shape)
                for of in "qkv"
                for kind, shape in (("weight", (inner, inner)), ("bias", (inner,)))
            }
            return {
                "x_q": normal(tokens, inner),
                "x_k": normal(tokens, inner),
                **layers,
                "cu_seqlens_q": cu_seqlens,
                "cu_seqlens_k": cu_seqlens,
                "max_seqlen_q": max(lengths, default=0),
                "max_seqlen_k": max(lengths, default=0),
                "num_heads": heads,
                "scale": 0.4,
                **dropout,
                "residual": True,
                **bias,
            }
        case "sampled_logits":
            return {
                "hidden": normal(tokens, width),
                **tables,
                "items": ids(item_rows, tokens, num_items),
                "users": users,
                "cu_seqlens": cu_seqlens,
            }
        case "sampled_loss" | "shared_loss":
            shared = op == "shared_loss"
            return {
                "hidden": normal(tokens, width),
                **tables,
                "positives": ids(item_rows, tokens),
                "negatives": ids(item_rows, len(lengths) if shared else tokens, num_items),
                "users": users,
                "cu_seqlens": cu_seqlens,
                **({"max_seqlen": max(lengths, default=0)} if shared else {}),
                "loss": "sampled_softmax",
                "beta": 0.5,
                "log_q": normal(item_rows).to(wide),
                "corrects_positive": True,
            }
        case "top_k" | "item_ranks":
            queries = len(lengths)
            seen_offsets = torch.tensor([0, *lengths]).cumsum(0)
            given = {
                "queries": normal(queries, item_width).to(wide),
                "table": tables["item_weight"],
                "num_items": max(item_rows - 1, 0),
                "seen_items": ids(item_rows, sum(lengths)),
                "seen_offsets": seen_offsets,
                "scale": normal(item_rows).to(wide),
            }
            if op == "item_ranks":
                return given | {"targets": ids(item_rows, queries), "target_scores": None}
            candidates = torch.arange(1, max(item_rows, 1))[::2]
            return given | {"k": min(num_items, len(candidates)), "candidates": candidates}
        case "lazy_adam" | "rowwise_adagrad":
            rows = torch.randperm(max(item_rows - 1, 0), generator=generator)[:num_items] + 1
            given = {"table": tables["item_weight"]}
            if op == "lazy_adam":
                given["exp_avg"] = normal(item_rows, item_width)
                given["exp_avg_sq"] = normal(item_rows, item_width).abs()
            else:
                given["sum_of_squares"] = normal(item_rows).abs()
            given["ids"] = torch.cat([rows.sort().values, torch.zeros(spare, dtype=torch.int64)])
            given["grad"] = normal(len(given["ids"]), item_width)
            given["learning_rate"] = torch.tensor(0.1)
            if op == "lazy_adam":
                given |= {"step": torch.tensor(3.0), "betas": (0.9, 0.98)}
            return given | {"eps": 1e-8, "weight_decay": 0.1}
    raise ValueError(op)


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
