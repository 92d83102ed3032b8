"""Runs every kernel, forward and backward, once on a small ragged batch, for compute-sanitizer.

Inputs are drawn on the CPU, so that hardly any kernels of torch run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from ssept_ext import ops
from ssept_ext.ops.relative_bias import TIME_BUCKETS

LENGTHS = (70, 0, 33, 1, 130)
SPARE_TOKENS = 13
NUM_ITEMS, NUM_USERS = 40, 5
WIDTHS = {
    torch.float32: (50, 75, 100, 150),
    torch.bfloat16: (50, 100, 150),
    torch.float16: (50,),
    torch.float64: (50,),
}
"""For all sizes of packs and of tiles; the two last types are for few."""


class Batch:
    """Ids and vectors on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)
        self.num_tokens = sum(LENGTHS) + SPARE_TOKENS
        self.seed = torch.tensor([5]).to(device)
        self.positions = self.ids(max(LENGTHS), self.num_tokens)
        self.users = self.ids(NUM_USERS, len(LENGTHS))
        self.items = self.ids(NUM_ITEMS, self.num_tokens)

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape).to(self.device)

    def leaf(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).to(self.device).requires_grad_()


def backward(out: Tensor, *leaves: Tensor) -> None:
    gradient = torch.ones(out.shape, dtype=out.dtype).to(out.device)
    torch.autograd.grad(out, leaves, gradient)


def norms_and_feed_forward(batch: Batch, dtype: torch.dtype, width: int) -> None:
    x = batch.leaf(dtype, batch.num_tokens, width)
    gamma, beta = (batch.leaf(dtype, max(LENGTHS), width) for _ in range(2))
    for parameters in ((gamma, beta), (batch.leaf(dtype, width), batch.leaf(dtype, width))):
        normal = ops.position_layer_norm(x, *parameters, batch.positions, batch.cu_seqlens)
        backward(normal, x, *parameters)
    layers = [batch.leaf(dtype, *shape) for shape in ((7, width), (7,), (width, 7), (width,))]
    backward(ops.feed_forward(x, *layers, 0.2, batch.seed), x, *layers)
    y, gate = (batch.leaf(dtype, batch.num_tokens, width) for _ in range(2))
    backward(ops.feed_forward(x, *layers, 0.2, batch.seed, residual=y), x, *layers, y)
    norm = [batch.leaf(dtype, width) for _ in range(2)]
    _, normal = ops.feed_forward_and_norm(x, *layers, *norm, 0.2, batch.seed)
    backward(normal, x, *layers, *norm)
    backward(ops.gated_residual(x, y, gate, 0.2, batch.seed), x, y, gate)
    backward(ops.gated_residual(x, y, None, 0.2, batch.seed), x, y)
    u = batch.leaf(dtype, batch.num_tokens, 2 * width)
    backward(ops.swiglu(u, 0.2, batch.seed), u)


def attention(batch: Batch, dtype: torch.dtype, width: int) -> None:
    longest = max(LENGTHS)
    lengths = (batch.cu_seqlens, batch.cu_seqlens, longest, longest)
    for heads in (1, 2) if width % 2 == 0 else (1,):
        shape = (batch.num_tokens, heads, width // heads)
        q, k, v = (batch.leaf(dtype, *shape) for _ in range(3))
        for precision in ("highest", "high") if dtype == torch.float32 else ("highest",):
            torch.set_float32_matmul_precision(precision)
            for p in (0.0, 0.2):
                out, _ = ops.causal_attention(q, k, v, *lengths, width**-0.5, p, batch.seed)
                backward(out, q, k, v)
            tables = [batch.leaf(torch.float32, heads, n) for n in (longest, TIME_BUCKETS)]
            bias = dict(zip(("position_bias", "time_bias"), tables, strict=True))
            times = {"query_times": batch.positions * 60 + 7, "key_times": batch.positions * 60}
            out, _ = ops.causal_attention(q, k, v, *lengths, width**-0.5, **bias, **times)
            backward(out, q, k, v, *tables)
            x, *rows = (batch.leaf(dtype, n, width) for n in (batch.num_tokens, *[width] * 3))
            biases = (batch.leaf(dtype, width) for _ in rows)
            layers = [x for layer in zip(rows, biases, strict=True) for x in layer]
            out = ops.multi_head_attention(
                x, x, *layers, *lengths, heads, width**-0.5, 0.2, batch.seed
            )
            backward(out, x, *layers)


def gradients_by_parts(batch: Batch, dtype: torch.dtype, width: int) -> None:
    """Of the weights of so many rows that kernels of ours add them up from parts."""
    num_rows, length = 4096, 64
    x, y = (batch.leaf(dtype, num_rows, width) for _ in range(2))
    layers = [batch.leaf(dtype, *shape) for shape in ((7, width), (7,), (width, 7), (width,))]
    norm = [batch.leaf(dtype, width) for _ in range(2)]
    both = ops.feed_forward_and_norm(x, *layers, *norm, 0.2, batch.seed, residual=y)
    backward(torch.cat(both), x, *layers, *norm, y)
    projections = [batch.leaf(dtype, *shape) for shape in 3 * ((width, width), (width,))]
    offsets = torch.arange(0, num_rows + 1, length, dtype=torch.int32).to(batch.device)
    lengths = (offsets, offsets, length, length)
    out = ops.multi_head_attention(x, x, *projections, *lengths, 1, width**-0.5, 0.2, batch.seed)
    backward(out, x, *projections)


def tables(batch: Batch, dtype: torch.dtype, width: int) -> None:
    user_width = 50
    items = batch.leaf(dtype, NUM_ITEMS, width)
    users = batch.leaf(dtype, NUM_USERS, user_width)
    positions = batch.leaf(dtype, max(LENGTHS), width + user_width)
    where = (batch.items, batch.users, batch.positions, batch.cu_seqlens)
    hidden = batch.leaf(dtype, batch.num_tokens, width + user_width)
    for fixed_order in (False, True):
        torch.use_deterministic_algorithms(fixed_order)
        tokens = ops.user_item_embedding(items, users, positions, *where, 0.2, batch.seed)
        backward(tokens, items, users, positions)
        read = ops.user_item_embedding_and_tables(items, users, positions, *where, 0.2, batch.seed)
        backward(torch.cat([x.flatten() for x in read]), items, users, positions)
        for k in (1, 5, 65):
            scored = batch.ids(NUM_ITEMS, batch.num_tokens, k)
            out = ops.sampled_logits(hidden, items, users, scored, batch.users, batch.cu_seqlens)
            backward(out, hidden, items, users)
            ids = (batch.items, scored, batch.users, batch.cu_seqlens)
            for loss in ("bce", "bpr", "sampled_softmax"):
                mean = ops.sampled_loss(hidden, items, users, *ids, loss)
                backward(mean, hidden, items, users)
    torch.use_deterministic_algorithms(False)


def updates_of_rows(batch: Batch, dtype: torch.dtype, width: int) -> None:
    if dtype not in (torch.float32, torch.float64):
        return
    ids = torch.tensor([0, 2, 3, 30, 0]).to(batch.device)
    table, average, average_sq = (batch.leaf(dtype, NUM_ITEMS, width).detach() for _ in range(3))
    grad, sums = batch.leaf(dtype, len(ids), width).detach(), average_sq[:, 0].square()
    numbers = torch.tensor(0.1).to(batch.device), torch.tensor(3.0).to(batch.device)
    given = {"eps": 1e-8, "weight_decay": 0.1}
    ops.lazy_adam(
        table, average, average_sq.square(), ids, grad, *numbers, betas=(0.9, 0.98), **given
    )
    ops.rowwise_adagrad(table, sums, ids, grad, numbers[0], **given)


def rankings(batch: Batch, dtype: torch.dtype, width: int) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    table = batch.leaf(dtype, NUM_ITEMS, width).detach()
    queries = batch.leaf(wide, 6, width).detach()
    seen, offsets = batch.ids(NUM_ITEMS, 12, 1)[:, 0], torch.arange(0, 13, 2).to(batch.device)
    # Of a large table, blocks of their own rank each part.
    for rows in (table, table.repeat(200, 1)):
        num_items = len(rows) - 1
        ops.top_k(queries, rows, min(10, num_items), num_items, seen, offsets)
        ops.item_ranks(queries, rows, seen[:6], num_items, None, seen, offsets)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = torch.device(parser.parse_args(argv).device)
    torch.manual_seed(0)
    # It would hide from initcheck what a kernel forgets to write.
    torch.utils.deterministic.fill_uninitialized_memory = False
    batch = Batch(device)
    for dtype, widths in WIDTHS.items():
        for width in widths:
            print(f"{dtype}, width {width}", flush=True)
            norms_and_feed_forward(batch, dtype, width)
            attention(batch, dtype, width)
            tables(batch, dtype, width)
            updates_of_rows(batch, dtype, width)
            rankings(batch, dtype, width)
        gradients_by_parts(batch, dtype, widths[0])
    if device.type == "cuda":
        torch.cuda.synchronize()
    ops.raise_pending_errors()
    print("every kernel ran")


if __name__ == "__main__":
    main()
