"""Benchmark `gated_residual` and `swiglu`, forward and backward, against plain PyTorch on the same number of tokens."""

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


def gated_residual(seed: Tensor) -> dict[str, Callable[..., Tensor]]:
    return {
        OURS: lambda x, y, gate: ops.gated_residual(x, y, gate, DROPOUT, seed),
        "plain PyTorch": lambda x, y, gate: x + torch.sigmoid(gate) * F.dropout(y, DROPOUT),
    }


def swiglu(seed: Tensor) -> dict[str, Callable[..., Tensor]]:
    def plain(u: Tensor) -> Tensor:
        a, b = u.chunk(2, 1)
        return F.dropout(F.silu(a) * b, DROPOUT)

    return {OURS: lambda u: ops.swiglu(u, DROPOUT, seed), "plain PyTorch": plain}


# Its arguments, and how often it moves a row of the result: both ways, every tensor read and every one written.
OPS = {"gated_residual": (gated_residual, (1, 1, 1), 9), "swiglu": (swiglu, (2,), 8)}


def alternatives_of(op: str, batch: Batch, dtype: torch.dtype, options: Options) -> dict[str, Call]:
    of, widths, _ = OPS[op]
    rows = len(batch.packed.items)
    leaves = [
        torch.randn(rows, n * WIDTH, dtype=dtype, device=options.device, requires_grad=True)
        for n in widths
    ]
    grad = torch.randn(rows, WIDTH, dtype=dtype, device=options.device)
    return {
        name: lambda run=run: torch.autograd.grad(run(*leaves), leaves, grad)
        for name, run in of(torch.tensor([1], device=options.device)).items()
    }


def run_case(op: str, name: Name, dtype: torch.dtype, options: Options) -> None:
    workload = load(name, options.quick)
    batch = workload.batch(options.device)
    num_bytes = OPS[op][2] * len(batch.packed.items) * WIDTH * dtype.itemsize
    floor = {"a copy of the bytes it must move": copy_floor(num_bytes, options)}
    precision = str(dtype).removeprefix("torch.")
    heading(f"{op}, {precision}, dropout {DROPOUT}", workload.describe(batch))
    compare(alternatives_of(op, batch, dtype, options), floor, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for op in OPS:
        for name in WORKLOADS[:1] if options.quick else WORKLOADS:
            for dtype in (torch.float32, torch.bfloat16):
                run_case(op, name, dtype, options)


if __name__ == "__main__":
    main()
