"""Times each op alone, in a captured graph: microseconds, bandwidth or FLOP/s, and share of the measured ceiling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import catalogue
import causal_attention
import feed_forward
import position_layer_norm
import sampled_logits
import torch
import user_item_embedding
from measure import OURS, Call, allow_tf32, copy_floor, seconds_by_graph
from workload import DIM, DROPOUT, attention_flops, load

from gpu.figures import FILE, read
from gpu.parts import Run, main
from ssept_ext import ops

NUM_ITEMS = (1, 65, 256)
"""Scored for each token: a positive and its negatives, of one or 64, or as many as gBCE's."""
NUM_QUERIES = (1, 256)
HEAD_SIZES = (64, 128)
PRECISIONS = {"TF32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = {"forward": False, "forward+backward": True}
BACKWARD_FLOPS = 2.5
"""Of attention's backward, five products, over its forward's two."""


def of_bandwidth(run: Run, name: str, call: Call, num_bytes: int) -> None:
    """Beside a copy of as many bytes, which is faster than a large one where they fit the cache."""
    seconds = seconds_by_graph(call, run.options)
    copy = seconds_by_graph(copy_floor(num_bytes, run.options).run, run.options)
    rate = num_bytes / seconds / 1e9
    share = share_of(run, rate, "copy", "GBps")
    run.record(name, us=1e6 * seconds, GBps=rate, percent_of_copy=share, copy_us=1e6 * copy)


def of_products(run: Run, name: str, call: Call, flops: float, precision: str) -> None:
    seconds = seconds_by_graph(call, run.options)
    rate = flops / seconds / 1e12
    share = share_of(run, rate, f"product {precision}", "TFLOPs")
    run.record(name, us=1e6 * seconds, TFLOPs=rate, percent_of_product=share)


def share_of(run: Run, rate: float, ceiling: str, unit: str) -> float | None:
    """Percent; None where the ceiling was not measured."""
    measured = read(run.out / FILE).get(ceiling)
    return 100 * rate / measured[unit] if measured else None


def embedding(run: Run) -> None:
    workload = load("ML-1M", run.options.quick)
    batch = workload.batch(run.options.device)
    for way, backward in WAYS.items():
        call = user_item_embedding.alternatives_of(workload, batch, backward, run.options)[OURS]
        num_bytes = user_item_embedding.bytes_moved(workload, batch, backward)
        of_bandwidth(run, f"user_item_embedding, {way}", call, num_bytes)


def norm(run: Run) -> None:
    batch = load("ML-1M", run.options.quick).batch(run.options.device)
    for way, backward in WAYS.items():
        call = position_layer_norm.alternatives_of(batch, run.options, backward)[OURS]
        num_bytes = position_layer_norm.bytes_moved(batch, backward)
        of_bandwidth(run, f"position_layer_norm, {way}", call, num_bytes)


def both_layers(run: Run) -> None:
    batch = load("ML-1M", run.options.quick).batch(run.options.device)
    for precision, dtype in PRECISIONS.items():
        for way, backward in WAYS.items():
            call = feed_forward.alternatives_of(batch, dtype, run.options, backward)[OURS]
            flops = feed_forward.flops_of(batch, backward)
            of_products(run, f"feed_forward, {precision}, {way}", call, flops, precision)


def logits(run: Run) -> None:
    options = run.options
    workload = load("ML-1M", options.quick)
    batch = workload.batch(options.device)
    for k in NUM_ITEMS:
        shape = (len(batch.packed.items), k)
        items = torch.randint(1, workload.dataset.itemnum + 1, shape, device=options.device)
        for way, backward in WAYS.items():
            case = (workload, batch, items)
            call = sampled_logits.alternatives_of(*case, options, backward)[OURS]
            num_bytes = sampled_logits.bytes_gathered(*case, backward)
            of_bandwidth(run, f"sampled_logits, K={k}, {way}", call, num_bytes)


def ranking(run: Run) -> None:
    """One query, which must read the table, and many, which share what is read; beside PyTorch's product and topk."""
    num_items, device = 2000 if run.options.quick else 1_000_000, run.options.device
    table = torch.randn(num_items + 1, DIM, device=device)
    for num_queries in NUM_QUERIES:
        queries = torch.randn(num_queries, DIM, device=device)
        targets = torch.arange(1, num_queries + 1, device=device)
        calls = {
            "top_k": partial(ops.top_k, queries, table, catalogue.K, num_items),
            "item_ranks": partial(ops.item_ranks, queries, table, targets, num_items),
            # Not the reference, which waits for the GPU: that cannot be captured.
            catalogue.PLAIN: partial(catalogue.plain(table), queries),
        }
        for name, call in calls.items():
            of_bandwidth(run, f"{name}, B={num_queries}", call, table.nbytes)


def on_lengths_of_ml1m(
    run: Run, name: str, of: Callable[..., Call], dropouts: tuple[float, ...]
) -> None:
    allow_tf32()
    batch = load("ML-1M", run.options.quick).batch(run.options.device)
    for precision, dtype in PRECISIONS.items():
        for p in dropouts:
            for way, backward in WAYS.items():
                flops = attention_flops(batch.lengths, 2 * DIM)
                flops *= 1 + BACKWARD_FLOPS if backward else 1
                call = of(batch, p, backward, dtype, run.options)
                full = f"{name}, {precision}, dropout {p}, {way}"
                of_products(run, full, call, flops, precision)


def at_full_length(run: Run, name: str, of: Callable[..., Call]) -> None:
    rows, length = (2, 16) if run.options.quick else (32, 512)
    for head_size in HEAD_SIZES:
        flops = attention_flops(torch.full((rows,), length), head_size) * (1 + BACKWARD_FLOPS)
        call = of(rows, length, head_size, run.options)
        full = f"{name}, D={head_size}, T=512, bfloat16, forward+backward"
        of_products(run, full, call, flops, "bfloat16")


if __name__ == "__main__":
    ours, masked = causal_attention.ours, partial(causal_attention.sdpa, dense=False)
    main(
        {
            "embedding": embedding,
            "norm": norm,
            "feed-forward": both_layers,
            "logits": logits,
            "ranking": ranking,
            "attention": partial(
                on_lengths_of_ml1m, name="attention", of=ours, dropouts=(0.0, DROPOUT)
            ),
            "full-length": partial(
                at_full_length, name="attention", of=causal_attention.full_length_ours
            ),
            "masked-sdpa": partial(
                on_lengths_of_ml1m, name="masked SDPA", of=masked, dropouts=(0.0,)
            ),
            "flash-sdpa": partial(
                at_full_length, name="flash SDPA", of=causal_attention.full_length_flash
            ),
        }
    )
