"""Benchmark ranking a catalogue for one query, over its size: exactly, by compressed vectors, by PyTorch and by faiss.

Times are the shortest of several, and compared with reading float32 vectors once. Vectors and queries are normal
numbers, without a structure that an index could use. Recall is the share of the 10 best items that are found, over 50
queries. The index of faiss is a product quantisation of 4 bits for two elements, whose 2,000 best are scored again in
float16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from measure import (
    OURS,
    Floor,
    Options,
    Times,
    heading,
    options_from,
    parser,
    print_table,
    print_title,
    side_by_side,
)
from torch import Tensor
from workload import DIM

from ssept_ext import ops
from ssept_ext.network.compressed import CompressedTable
from ssept_ext.network.config import SASRECConfig
from ssept_ext.network.scores import Scores

K = 10
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
NUM_QUERIES = 50
PLAIN, FAISS = "PyTorch, product and topk", "faiss, product quantisation"
READING = "reading float32 vectors"
Search = Callable[[Tensor], Tensor]
"""From (n, DIM) queries to (n, K) items."""


def exact(table: Tensor) -> Search:
    return lambda queries: ops.top_k(queries, table, K, len(table) - 1)[0]


def compressed(table: Tensor, dtype: torch.dtype) -> Search:
    scores = Scores(SASRECConfig(item_num=1, embedding_dim=DIM, conv_dims=[DIM, DIM]))
    small = CompressedTable.of(table, dtype, scores, version=0)
    num_items = len(table) - 1
    return lambda queries: ops.top_k(queries, small.vectors, K, num_items, scale=small.scale)[0]


def plain(table: Tensor) -> Search:
    """As most libraries rank, with a score for each item in memory."""
    return lambda queries: (queries @ table[1:].T).topk(K).indices + 1


def by_faiss(table: Tensor, rescored: int = 2000) -> Search:
    import faiss

    vectors = table[1:].numpy()
    index = faiss.index_factory(DIM, f"PQ{DIM // 2}x4fs,Refine(SQfp16)", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:100_000])
    index.add(vectors)
    index.k_factor = rescored / K
    return lambda queries: torch.from_numpy(index.search(queries.numpy(), K)[1] + 1)


def searches(table: Tensor) -> dict[str, Search]:
    found = {OURS: exact(table)}
    found |= {
        f"ours, {dtype}": compressed(table, getattr(torch, dtype)) for dtype in ("float16", "int8")
    }
    found[PLAIN] = plain(table)
    if len(table) > 10**5 and importlib.util.find_spec("faiss") is not None:
        found[FAISS] = by_faiss(table)
    return found


def recall(found: Tensor, expected: Tensor) -> float:
    """The share of (n, K) expected items that are found."""
    pairs = zip(found.tolist(), expected.tolist(), strict=True)
    return float(np.mean([len(set(x) & set(y)) / K for x, y in pairs]))


def shortest(times: Times, name: str) -> float:
    """Seconds."""
    return float((times.alternatives | times.floors)[name].min())


def run(num_items: int, options: Options) -> Times:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(num_items + 1, DIM, generator=generator)
    queries = torch.randn(NUM_QUERIES, DIM, generator=generator)
    of_size = searches(table)
    expected = of_size[OURS](queries)
    one: Iterator[Tensor] = cycle(queries.split(1))
    times = side_by_side(
        {name: lambda search=search: search(next(one)) for name, search in of_size.items()},
        {READING: Floor(lambda: table.sum(), 1.0)},
        options,
    )
    rows = []
    for name, search in of_size.items():
        row = [name, f"{shortest(times, name) / shortest(times, READING):.2f}"]
        row.append(f"{recall(search(queries), expected):.3f}")
        if options.verbose:
            row.append(f"{1e3 * shortest(times, name):.2f}")
        rows.append(row)
    heading(f"{num_items:,} items, one query, k={K}, d={DIM}")
    columns = ["", f"time / {READING}", f"recall@{K}"]
    print_table(columns + (["ms"] if options.verbose else []), rows)
    return times


def plot(times: dict[int, Times], file: Path) -> None:
    """Draw milliseconds of a query over the number of items."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in max((of.alternatives for of in times.values()), key=len):
        sizes = [size for size, of in times.items() if name in of.alternatives]
        label = "ours, float32" if name == OURS else name
        axes.loglog(sizes, [1e3 * shortest(times[n], name) for n in sizes], marker="o", label=label)
    reads = [1e3 * shortest(of, READING) for of in times.values()]
    axes.loglog(list(times), reads, color="grey", linestyle=":", label=READING)
    axes.set(xlabel="items", ylabel="ms a query")
    axes.legend()
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--plot", type=Path, metavar="FILE", help="draw the times, as PNG")
    parsed = arguments.parse_args(argv)
    options = options_from(parsed)
    print_title(__doc__, options)
    sizes = (100, 1000) if options.quick else SIZES
    times = {size: run(size, options) for size in sizes}
    if parsed.plot is not None:
        plot(times, parsed.plot)


if __name__ == "__main__":
    main()
