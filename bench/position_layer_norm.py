"""Benchmark `position_layer_norm`, forward and backward, against plain PyTorch, packed and padded."""

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
from workload import DIM, Batch, Name, load

from ssept_ext import ops

WORKLOADS: tuple[Name, ...] = ("ML-1M", "Games")
WIDTH = 2 * DIM


def alternatives_of(batch: Batch, options: Options, backward: bool = True) -> dict[str, Call]:
    packed = batch.packed
    num_rows, length = batch.seq.shape
    gamma, beta = (
        torch.randn(length, WIDTH, device=options.device, requires_grad=True) for _ in range(2)
    )

    def plain_packed(x: Tensor) -> Tensor:
        normal = F.layer_norm(x, (WIDTH,), eps=1e-8)
        where = packed.positions
        return torch.addcmul(F.embedding(where, beta), F.embedding(where, gamma), normal)

    def run_of(norm: Callable[[Tensor], Tensor], *shape: int) -> Call:
        x = torch.randn(shape, device=options.device, requires_grad=True)
        if not backward:
            return lambda: norm(x)
        grad = torch.randn_like(x)
        return lambda: torch.autograd.grad(norm(x), (x, gamma, beta), grad)

    num_tokens = len(packed.items)
    return {
        OURS: run_of(
            lambda x: ops.position_layer_norm(x, gamma, beta, packed.positions, packed.cu_seqlens),
            num_tokens,
            WIDTH,
        ),
        "plain PyTorch, packed": run_of(plain_packed, num_tokens, WIDTH),
        "plain PyTorch, padded": run_of(
            lambda x: torch.addcmul(beta, gamma, F.layer_norm(x, (WIDTH,), eps=1e-8)),
            num_rows,
            length,
            WIDTH,
        ),
    }


def bytes_moved(batch: Batch, backward: bool = True) -> int:
    """x read and out written; x and its gradient read and written; gamma and beta, and theirs."""
    tokens = (5 if backward else 2) * WIDTH * len(batch.packed.items)
    parameters = (2 if backward else 1) * 2 * WIDTH * batch.seq.shape[1]
    return 4 * (tokens + parameters)


def run_case(name: Name, options: Options) -> None:
    workload = load(name, options.quick)
    batch = workload.batch(options.device)
    floor = {"a copy of the bytes it must move": copy_floor(bytes_moved(batch), options)}
    heading(workload.describe(batch))
    compare(alternatives_of(batch, options), floor, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for name in WORKLOADS[:1] if options.quick else WORKLOADS:
        run_case(name, options)


if __name__ == "__main__":
    main()
