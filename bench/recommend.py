"""Benchmark `recommend` for 1,000 users and for one, among 1,000,000 items, with k=10 and seen items excluded.

It is compared with the matrix product alone, and with a simple version that calls `topk` on scores in blocks of 16 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from measure import (
    OURS,
    Floor,
    Options,
    compare,
    heading,
    options_from,
    parser,
    peak_extra_memory,
    print_title,
)
from torch import Tensor
from workload import DIM

from ssept_ext import SSEPT
from ssept_ext.data.histories import Histories
from ssept_ext.ranking.catalogue import encode_groups

K = 10
SEQ_MAX_LEN = 50
SCORES_AT_A_TIME = 1 << 22


def blocks(queries: Tensor, item_weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first item and the scores (m, n) of blocks of up to SCORES_AT_A_TIME scores."""
    width = max(SCORES_AT_A_TIME // len(queries), 1)
    for first in range(1, len(item_weight), width):
        yield first, queries @ item_weight[first : first + width].T


def recommend_plainly(model: SSEPT, histories: dict[int, list[int]]) -> Tensor:
    """(n, K) item ids by `topk` on every block and then on its results."""
    seen = Histories.from_mapping(histories)
    found = []
    with torch.inference_mode():
        for rows, queries, _ in encode_groups(model, seen, batch_size=256):
            part = seen.part(rows)
            items = torch.from_numpy(part.items).to(model.device)
            row = torch.arange(len(queries)).repeat_interleave(
                torch.from_numpy(part.offsets).diff()
            )
            row = row.to(model.device)
            best = []
            for first, scores in blocks(queries, model.item_embedding_layer.weight):
                here = (items >= first) & (items < first + scores.shape[1])
                scores[row[here], items[here] - first] = -math.inf
                values, columns = scores.topk(min(K, scores.shape[1]))
                best.append((values, first + columns))
            values, ids = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
            found.append(ids.gather(1, values.topk(K).indices))
    return torch.cat(found)


def run(num_users: int, num_items: int, options: Options) -> None:
    rng = np.random.default_rng(0)
    histories = {
        user: rng.integers(1, num_items + 1, rng.integers(1, 2 * SEQ_MAX_LEN)).tolist()
        for user in range(1, num_users + 1)
    }
    model = SSEPT(
        item_num=num_items,
        user_num=num_users,
        seq_max_len=SEQ_MAX_LEN,
        embedding_dim=DIM,
        conv_dims=[2 * DIM, 2 * DIM],
    ).to(options.device)
    item_weight = model.item_embedding_layer.weight.detach()
    queries = torch.randn(num_users, DIM, device=options.device)

    def product() -> None:
        for _ in blocks(queries, item_weight):
            pass

    def ours() -> object:
        return model.recommend(histories, k=K)

    heading(
        f"{num_users} users, {num_items} items, k={K}, T={SEQ_MAX_LEN}, d={DIM}+{DIM}, random histories"
    )
    compare(
        {OURS: ours, "topk on every block": lambda: recommend_plainly(model, histories)},
        {"the product of users and items alone": Floor(product, 1.0)},
        options,
        budget=30,
    )
    memory = peak_extra_memory(ours, options)
    if memory is not None:
        print(
            f"  Ours needs {memory / 2**20:.0f} MiB of extra memory; all scores would be "
            f"{4 * num_users * num_items / 2**20:.0f} MiB."
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    for num_users in (20 if options.quick else 1000, 1):
        run(num_users, 500 if options.quick else 1_000_000, options)


if __name__ == "__main__":
    main()
