"""Benchmark the loss "softmax", over all items, with its gradients: against plain PyTorch, and tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

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
from workload import Batch, Workload, load

from ssept_ext.network import losses

WIDTHS = (50, 100)


def alternatives_of(
    workload: Workload, batch: Batch, width: int, options: Options
) -> dict[str, Call]:
    packed, num_items = batch.packed, workload.dataset.itemnum
    positives = torch.randint(1, num_items + 1, packed.items.shape, device=options.device)
    shapes = ((len(positives), width), (num_items + 1, width))
    inputs = [torch.randn(shape, device=options.device, requires_grad=True) for shape in shapes]

    def plain(hidden: Tensor, item_weight: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ item_weight[1:].T, positives - 1)

    alternatives = {
        OURS: lambda *x: losses.softmax(*x, positives),
        "tile by tile": lambda *x: losses.softmax(*x, positives, "reference"),
        "plain PyTorch": plain,
    }
    return {
        name: lambda run=run: torch.autograd.grad(run(*inputs), inputs)
        for name, run in alternatives.items()
    }


def run_case(width: int, options: Options) -> None:
    workload = load("ML-1M", options.quick)
    batch = workload.batch(options.device)
    logits = len(batch.packed.items) * workload.dataset.itemnum
    floor = large_gemm_floor(3 * 2 * logits * width, options)
    heading(f"{width} features, {workload.dataset.itemnum:,} items", workload.describe(batch))
    floors = {"its three products at the rate of large ones": floor}
    compare(alternatives_of(workload, batch, width, options), floors, options)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for width in WIDTHS[:1] if options.quick else WIDTHS:
        run_case(width, options)


if __name__ == "__main__":
    main()
