"""Benchmark `feed_forward`, forward and backward, against plain PyTorch on the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from measure import (
    OURS,
    Call,
    Options,
    compare,
    heading,
    large_gemm_floor,
    options_from,
    parser,
    print_title,
)
from torch import Tensor
from torch.nn import functional as F
from workload import DIM, DROPOUT, Batch, Name, load

from ssept_ext import ops

WORKLOADS: tuple[Name, ...] = ("ML-1M", "Games")
WIDTH = 2 * DIM


def alternatives_of(
    batch: Batch, dtype: torch.dtype, options: Options, backward: bool = True
) -> dict[str, Call]:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=options.device, requires_grad=True)

    x = leaf(len(batch.packed.items), WIDTH)
    layers = (leaf(WIDTH, WIDTH), leaf(WIDTH), leaf(WIDTH, WIDTH), leaf(WIDTH))
    grad = torch.randn_like(x)
    seed = torch.tensor([1], device=options.device)

    def ours() -> Tensor:
        return ops.feed_forward(x, *layers, DROPOUT, seed)

    def plain() -> Tensor:
        inner = F.dropout(F.relu(F.linear(x, *layers[:2])), DROPOUT)
        return F.dropout(F.linear(inner, *layers[2:]), DROPOUT) + x

    alternatives: dict[str, Callable[[], Tensor]] = {OURS: ours, "plain PyTorch": plain}
    if not backward:
        return dict(alternatives)
    return {
        name: lambda run=run: torch.autograd.grad(run(), (x, *layers), grad)
        for name, run in alternatives.items()
    }


def flops_of(batch: Batch, backward: bool = True) -> int:
    products = 6 if backward else 2
    return products * 2 * len(batch.packed.items) * WIDTH * WIDTH


def run_case(name: Name, dtype: torch.dtype, options: Options) -> None:
    workload = load(name, options.quick)
    batch = workload.batch(options.device)
    floor = {
        "its FLOPs at the rate of large matrix products": large_gemm_floor(
            flops_of(batch), options, dtype
        )
    }
    precision = str(dtype).removeprefix("torch.")
    heading(f"{precision}, dropout {DROPOUT}", workload.describe(batch))
    compare(alternatives_of(batch, dtype, options), floor, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for name in WORKLOADS[:1] if options.quick else WORKLOADS:
        for dtype in (torch.float32, torch.bfloat16):
            run_case(name, dtype, options)


if __name__ == "__main__":
    main()
