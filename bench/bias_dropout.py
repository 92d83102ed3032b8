"""Benchmark `bias_dropout`, forward and backward, against plain PyTorch on the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from measure import (
    OURS,
    Call,
    Options,
    compare,
    copy_floor,
    heading,
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
    batch: Batch, relu: bool, options: Options, backward: bool = True
) -> dict[str, Call]:
    """After the feed-forward's first product (`relu`), or after its second, which adds the residual."""
    x, residual = (
        torch.randn(len(batch.packed.items), WIDTH, device=options.device, requires_grad=True)
        for _ in range(2)
    )
    bias = torch.randn(WIDTH, device=options.device, requires_grad=True)
    grad = torch.randn_like(x)
    seed = torch.tensor([1], device=options.device)
    inputs = (x, bias) if relu else (x, bias, residual)

    def ours() -> Tensor:
        return ops.bias_dropout(x, bias, None if relu else residual, relu, DROPOUT, seed)

    def plain() -> Tensor:
        if relu:
            return F.dropout(F.relu(x + bias), DROPOUT)
        return F.dropout(x + bias, DROPOUT) + residual

    alternatives: dict[str, Callable[[], Tensor]] = {OURS: ours, "plain PyTorch": plain}
    if not backward:
        return dict(alternatives)
    return {
        name: lambda run=run: torch.autograd.grad(run(), inputs, grad)
        for name, run in alternatives.items()
    }


def bytes_moved(batch: Batch, relu: bool, backward: bool = True) -> int:
    """With ReLU: x, output; output, its gradient, x's. With residual: x, residual, output; two gradients."""
    rows = 5 if backward else 2 if relu else 3
    return rows * 4 * WIDTH * len(batch.packed.items)


def run_case(name: Name, relu: bool, options: Options) -> None:
    workload = load(name, options.quick)
    batch = workload.batch(options.device)
    floor = {"a copy of the bytes it must move": copy_floor(bytes_moved(batch, relu), options)}
    what = "With ReLU" if relu else "With residual"
    heading(f"{what}, dropout {DROPOUT}", workload.describe(batch))
    compare(alternatives_of(batch, relu, options), floor, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for name in WORKLOADS[:1] if options.quick else WORKLOADS:
        for relu in (True, False):
            run_case(name, relu, options)


if __name__ == "__main__":
    main()
