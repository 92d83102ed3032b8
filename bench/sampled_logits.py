"""Benchmark `sampled_logits`, forward and backward, against a gather and an einsum in plain PyTorch.

Then a sampled softmax, as an op and in a training step, over 256 negatives that the events of a sequence or a batch
share, against 16 and 256 of each event's own.
"""

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
    large_gemm_floor,
    options_from,
    parser,
    print_title,
)
from torch import Tensor
from torch.nn import functional as F
from workload import BATCH_SIZE, DIM, Batch, Workload, load

from ssept_ext import PackedBatch, WarpSampler, ops
from ssept_ext.data.packed import NegativesPer
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import eager_step, make_optimizer

NUM_ITEMS = (1, 16, 256)
QUICK_NUM_ITEMS = (1, 4)


def alternatives_of(
    workload: Workload, batch: Batch, items: Tensor, options: Options, backward: bool = True
) -> dict[str, Call]:
    packed, data = batch.packed, workload.dataset
    sequence_of_token = (batch.seq != 0).nonzero()[:, 0]
    shapes = ((len(packed.items), 2 * DIM), (data.itemnum + 1, DIM), (data.usernum + 1, DIM))
    inputs = [torch.randn(shape, device=options.device, requires_grad=True) for shape in shapes]
    grad = torch.randn(items.shape, device=options.device)

    def plain(hidden: Tensor, item_weight: Tensor, user_weight: Tensor) -> Tensor:
        vectors = F.embedding(items, item_weight)
        user = (F.embedding(packed.users, user_weight) * DIM**0.5)[sequence_of_token]
        of_user = torch.einsum("nd,nd->n", hidden[:, DIM:], user)
        return torch.einsum("nd,nkd->nk", hidden[:, :DIM], vectors) + of_user.unsqueeze(1)

    def ours(hidden: Tensor, item_weight: Tensor, user_weight: Tensor) -> Tensor:
        where = (items, packed.users, packed.cu_seqlens)
        return ops.sampled_logits(hidden, item_weight, user_weight, *where)

    alternatives = {OURS: ours, "gather and einsum": plain}
    if not backward:
        return {name: lambda run=run: run(*inputs) for name, run in alternatives.items()}
    return {
        name: lambda run=run: torch.autograd.grad(run(*inputs), inputs, grad)
        for name, run in alternatives.items()
    }


def bytes_moved(workload: Workload, batch: Batch, items: Tensor, backward: bool = True) -> int:
    """Every row that is needed read once by forward and by backward, every result written once."""
    hidden = 2 * DIM * len(batch.packed.items)
    rows = DIM * (len(items.unique()) + len(batch.packed.users.unique()))
    tables = DIM * (workload.dataset.itemnum + workload.dataset.usernum + 2)
    one_way = 4 * (hidden + rows + items.numel()) + 8 * items.numel()
    return 2 * one_way + 4 * (hidden + tables) if backward else one_way


def bytes_gathered(workload: Workload, batch: Batch, items: Tensor, backward: bool = True) -> int:
    """`bytes_moved`, but an item's row counts each time it is scored, and its gradient each time it is added to."""
    again = items.numel() - len(items.unique())
    if backward:
        again = 2 * again + items.numel() - (workload.dataset.itemnum + 1)
    return bytes_moved(workload, batch, items, backward) + 4 * DIM * again


def run_case(num_items: int, options: Options) -> None:
    workload = load("ML-1M", options.quick)
    batch = workload.batch(options.device)
    shape = (len(batch.packed.items), num_items)
    items = torch.randint(1, workload.dataset.itemnum + 1, shape, device=options.device)
    alternatives = alternatives_of(workload, batch, items, options)
    flops = 3 * 2 * items.numel() * DIM
    floors = {
        "a copy of the bytes it must move": copy_floor(
            bytes_moved(workload, batch, items), options
        ),
        "its FLOPs at the rate of large matrix products": large_gemm_floor(flops, options),
    }
    heading(
        f"K={num_items}",
        f"{workload.describe(batch)}; {workload.dataset.itemnum} items",
    )
    compare(alternatives, floors, options, budget=10)


def draw(workload: Workload, num_negatives: int, per: NegativesPer) -> PackedBatch:
    data = workload.dataset
    with WarpSampler(
        data.histories("train"),
        data.usernum,
        data.itemnum,
        BATCH_SIZE,
        workload.seq_max_len,
        seed=0,
        num_negatives=num_negatives,
        negatives_per=per,
    ) as sampler:
        return sampler.next_packed()


def loss_of(batch: PackedBatch, inputs: list[Tensor]) -> Call:
    shared = batch.negatives_per != "event"
    compute: Callable[..., Tensor] = ops.shared_loss if shared else ops.sampled_loss
    ids = (batch.positives, batch.negatives, batch.users, batch.cu_seqlens)
    arguments = (*inputs, *ids, *[batch.max_seqlen] * shared, "sampled_softmax")
    return lambda: torch.autograd.grad(compute(*arguments), inputs)


def step_on(batch: PackedBatch, workload: Workload, options: Options) -> Call:
    model = workload.model().to(options.device)
    optimizer = make_optimizer(model, 1e-3, TrainingOptions())
    seed = torch.tensor([1], device=options.device)

    def loss(given: PackedBatch, seed: Tensor) -> Tensor:
        return model.training_loss(given, "sampled_softmax", seed=seed)

    step = eager_step(optimizer, loss)
    return lambda: step(batch, seed)


def run_shared(options: Options) -> None:
    workload = load("ML-1M", options.quick)
    data = workload.dataset
    many, few = (8, 2) if options.quick else (256, 16)
    batches = {
        OURS: draw(workload, many, "sequence").to(options.device),
        "shared by the batch": draw(workload, many, "batch").to(options.device),
        f"{few} of each event's own": draw(workload, few, "event").to(options.device),
        f"{many} of each event's own": draw(workload, many, "event").to(options.device),
    }
    tokens = len(batches[OURS].items)
    shapes = ((tokens, 2 * DIM), (data.itemnum + 1, DIM), (data.usernum + 1, DIM))
    inputs = [torch.randn(shape, device=options.device, requires_grad=True) for shape in shapes]
    title = f"{many} negatives shared by a sequence"
    floor = large_gemm_floor(3 * 2 * tokens * many * DIM, options)
    heading(f"{title}, the op", workload.describe(workload.batch(options.device)))
    ops_of = {name: loss_of(batch, inputs) for name, batch in batches.items()}
    compare(ops_of, {"its FLOPs at the rate of large matrix products": floor}, options, budget=10)
    heading(f"{title}, a training step with them")
    steps = {name: step_on(batch, workload, options) for name, batch in batches.items()}
    compare(steps, {}, options, budget=10)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for num_items in QUICK_NUM_ITEMS if options.quick else NUM_ITEMS:
        run_case(num_items, options)
    run_shared(options)


if __name__ == "__main__":
    main()
