"""Benchmark `user_item_embedding` against plain PyTorch, on packed tokens, and padded as in recommenders."""

from __future__ import annotations

from collections.abc import Sequence

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
from workload import DIM, DROPOUT, Batch, Name, Workload, load

from ssept_ext import ops

WORKLOADS: tuple[Name, ...] = ("ML-1M", "Games")


def tables_of(workload: Workload, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Item, user and position vectors."""
    data = workload.dataset
    shapes = (
        (data.itemnum + 1, DIM),
        (data.usernum + 1, DIM),
        (workload.seq_max_len, 2 * DIM),
    )
    items, users, positions = (
        torch.randn(shape, device=options.device, requires_grad=True) for shape in shapes
    )
    return items, users, positions


def embed(
    items: Tensor, users: Tensor, positions: Tensor, tables: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Ids of one shape -> vectors, in plain PyTorch."""
    item_weight, user_weight, position_weight = tables
    what = F.embedding(items, item_weight, padding_idx=0) * DIM**0.5
    who = F.embedding(users, user_weight, padding_idx=0) * DIM**0.5
    x = torch.cat([what, who.expand(*what.shape[:-1], -1)], -1)
    return F.dropout(x + F.embedding(positions, position_weight), DROPOUT)


def alternatives_of(
    workload: Workload, batch: Batch, backward: bool, options: Options
) -> dict[str, Call]:
    tables = tables_of(workload, options)
    packed = batch.packed
    seed = torch.tensor([1], device=options.device)
    columns = torch.arange(workload.seq_max_len, device=options.device).expand_as(batch.seq)
    sequence_of_token = (batch.seq != 0).nonzero()[:, 0]

    def ours() -> Tensor:
        where = (packed.items, packed.users, packed.positions, packed.cu_seqlens)
        return ops.user_item_embedding(*tables, *where, DROPOUT, seed)

    def plain_packed() -> Tensor:
        users = packed.users[sequence_of_token]
        return embed(packed.items, users, packed.positions, tables)

    def plain_padded() -> Tensor:
        x = embed(batch.seq, batch.users, columns, tables)
        return x * (batch.seq != 0).unsqueeze(-1)

    def run_of(forward: Call, shape: tuple[int, ...]) -> Call:
        grad = torch.randn(shape, device=options.device)
        return lambda: torch.autograd.grad(forward(), tables, grad) if backward else forward()

    num_tokens = len(packed.items)
    return {
        OURS: run_of(ours, (num_tokens, 2 * DIM)),
        "plain PyTorch, packed": run_of(plain_packed, (num_tokens, 2 * DIM)),
        "plain PyTorch, padded": run_of(plain_padded, (*batch.seq.shape, 2 * DIM)),
    }


def bytes_moved(workload: Workload, batch: Batch, backward: bool) -> int:
    """Every row that is needed read once, every result written once."""
    packed = batch.packed
    rows = DIM * (len(packed.items.unique()) + len(packed.users.unique()))
    rows += 2 * DIM * len(packed.positions.unique())
    out = 2 * DIM * len(packed.items)
    ids = 2 * len(packed.items) + len(packed.users)
    total = 4 * (rows + out) + 8 * ids
    if backward:
        data = workload.dataset
        tables = DIM * (data.itemnum + data.usernum + 2) + 2 * DIM * workload.seq_max_len
        total += 4 * (out + tables) + 8 * ids
    return total


def run_case(name: Name, backward: bool, options: Options) -> None:
    workload = load(name, options.quick)
    batch = workload.batch(options.device)
    alternatives = alternatives_of(workload, batch, backward, options)
    floor = {
        "a copy of the bytes it must move": copy_floor(
            bytes_moved(workload, batch, backward), options
        )
    }
    heading(
        f"{'Forward and backward' if backward else 'Forward'}, dropout {DROPOUT}",
        workload.describe(batch),
    )
    compare(alternatives, floor, options, budget=4)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for name in WORKLOADS[:1] if options.quick else WORKLOADS:
        for backward in (False, True):
            run_case(name, backward, options)


if __name__ == "__main__":
    main()
