"""`top_k` and `item_ranks`, in every implementation."""

import math

import numpy as np
import pytest
import torch
from support.implementations import ALL

from ssept_ext import ops
from ssept_ext.ops.ranking_reference import PACKED_ITEMS

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
every_backend = pytest.mark.parametrize("backend", ["native", "reference"])

TYPES = [torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [  # queries, items, width, k
    (1, 1, 1, 1),
    (3, 70, 5, 4),
    (9, 200, 17, 200),
    (2, 450, 50, 10),
]


def packed(table):
    rows = -(-len(table) // PACKED_ITEMS) * PACKED_ITEMS
    padded = torch.zeros(rows, table.shape[1], dtype=table.dtype)
    padded[: len(table)] = table
    return padded.view(-1, PACKED_ITEMS, table.shape[1]).transpose(1, 2).contiguous()


def arguments(num_queries, num_items, width, k=None, dtype=torch.float32, seed=0):
    """Of integers, so that every order of a sum gives the same score; there are ties."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def integers(*shape):
        return torch.randint(-3, 4, shape, generator=generator)

    lengths = torch.randint(0, 8, (num_queries,), generator=generator)
    seen_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    table = integers(num_items + 1, width).to(dtype)
    table[0] = 99  # which is never read
    return {
        "queries": integers(num_queries, width).to(wide),
        "table": table,
        **({} if k is None else {"k": k}),
        "num_items": num_items,
        "seen_items": torch.randint(num_items + 1, (int(lengths.sum()),), generator=generator),
        "seen_offsets": seen_offsets,
    }


def on(device, given):
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in given.items()}


def called(implementation, op, given):
    return [x.cpu() for x in implementation.op(op)(**on(implementation.device, given))]


def all_scores(given):
    """(B, R) float64."""
    scores = given["queries"].double() @ given["table"].double().T
    return scores * given["scale"].double() if given.get("scale") is not None else scores


def seen_by(given, query):
    start, end = given["seen_offsets"][query : query + 2].tolist()
    return set(given["seen_items"][start:end].tolist())


def best_by_definition(given):
    scores = all_scores(given).numpy()
    ids = given.get("candidates")
    ids = np.arange(1, given["num_items"] + 1) if ids is None else ids.numpy()
    items = np.zeros((len(scores), given["k"]), np.int64)
    best = np.full(items.shape, -math.inf)
    for query, row in enumerate(scores):
        unseen = ids[~np.isin(ids, list(seen_by(given, query)))]
        order = unseen[np.argsort(-row[unseen], kind="stable")][: given["k"]]
        items[query, : len(order)], best[query, : len(order)] = order, row[order]
    return torch.from_numpy(items), torch.from_numpy(best)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@every_implementation
def test_the_best_are_those_of_the_definition(implementation, dtype, size):
    given = arguments(*size, dtype=dtype)
    expected = best_by_definition(given)

    items, scores = called(implementation, "top_k", given)

    assert torch.equal(items, expected[0])
    assert torch.equal(scores.double(), expected[1])
    side_by_side = given | {"table": packed(given["table"])}
    assert torch.equal(called(implementation, "top_k", side_by_side)[0], items)


@pytest.mark.parametrize("layout", [torch.Tensor.clone, packed], ids=["rows", "packed"])
@every_implementation
def test_candidates_are_ranked_by_scaled_scores(implementation, layout):
    given = arguments(4, 300, 5, 60, torch.int8)
    given["candidates"] = torch.tensor([1, 2, 5, 63, 64, 65, *range(100, 300, 3), 300])
    scale = torch.randint(1, 4, (320,)).float()
    expected = best_by_definition(given | {"scale": scale[:301]})
    table = layout(given["table"])

    found = called(
        implementation,
        "top_k",
        given | {"table": table, "scale": scale[: 301 + 19 * (table.dim() == 3)]},
    )

    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].double(), expected[1])


@every_implementation
def test_where_all_are_seen_there_is_no_item(implementation):
    given = arguments(2, 3, 4, 3)
    given |= {
        "seen_items": torch.tensor([3, 1, 2, 1, 0, 3]),
        "seen_offsets": torch.tensor([0, 4, 6]),
    }

    items, scores = called(implementation, "top_k", given)

    assert items[0].tolist() == [0, 0, 0]
    assert scores[0].tolist() == [-math.inf] * 3
    assert sorted(items[1].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("item", [1, 130, 300])
@every_implementation
def test_a_score_that_is_not_finite_makes_its_row_nan(implementation, value, item):
    given = arguments(3, 300, 4, 5)
    given["queries"][0, 2], given["queries"][1, 2] = 1, 0  # 0 · inf is NaN too
    expected = called(implementation, "top_k", given | {"table": given["table"][:301].clone()})
    given["table"][item, 2] = value
    given["queries"][2] = 0
    given["table"] = torch.cat([given["table"], torch.full((3, 4), math.nan)])  # not ranked

    items, scores = called(implementation, "top_k", given)

    assert not items.any()
    assert scores.isnan().all()
    others = called(implementation, "top_k", given | {"num_items": item - 1, "k": min(5, item - 1)})
    assert not others[1].isnan().any()
    assert not expected[1].isnan().any()


@every_implementation
def test_nothing_gives_nothing(implementation):
    given = arguments(0, 5, 3, 2)
    assert [x.shape for x in called(implementation, "top_k", given)] == [(0, 2)] * 2
    given = arguments(2, 5, 3, 0)
    assert [x.shape for x in called(implementation, "top_k", given)] == [(2, 0)] * 2
    given = arguments(2, 5, 0, 2) | {"seen_items": torch.zeros(0, dtype=torch.int64)}
    given["seen_offsets"] = torch.zeros(3, dtype=torch.int64)
    assert called(implementation, "top_k", given)[0].tolist() == [[1, 2]] * 2


def random_arguments(num_queries, num_items, width, k, dtype):
    """Whose scores depend on the order of the sums."""
    given = arguments(num_queries, num_items, width, k, dtype)
    given["queries"] = torch.randn_like(given["queries"])
    if dtype != torch.int8:
        given["table"] = torch.randn(num_items + 1, width).to(dtype)
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_the_bits_depend_neither_on_threads_nor_on_other_queries_and_items(dtype):
    given = random_arguments(21, 5000, 50, 30, dtype)
    expected = ops.top_k(**given)

    torch.set_num_threads(1)
    alone = ops.top_k(**given)
    torch.set_num_threads(2)

    assert all(torch.equal(x, y) for x, y in zip(alone, expected, strict=True))
    side_by_side = ops.top_k(**given | {"table": packed(given["table"])})
    assert all(torch.equal(x, y) for x, y in zip(side_by_side, expected, strict=True))
    for query in (0, 20):
        start, end = given["seen_offsets"][query : query + 2].tolist()
        one = given | {
            "queries": given["queries"][query : query + 1],
            "seen_items": given["seen_items"][start:end],
            "seen_offsets": torch.tensor([0, end - start]),
        }
        found = ops.top_k(**one)
        assert all(torch.equal(x[0], y[query]) for x, y in zip(found, expected, strict=True))
        among = ops.top_k(**one | {"candidates": found[0][0].sort().values})
        assert torch.equal(among[1], found[1])


@every_implementation
def test_scores_are_as_exact_as_their_type(implementation):
    given = random_arguments(7, 400, 50, 20, torch.float32)

    items, scores = called(implementation, "top_k", given)

    exact = all_scores(given).gather(1, items)
    norms = given["queries"].norm(dim=1)[:, None] * given["table"].norm(dim=1)[items]
    assert ((scores - exact).abs() <= 2e-6 * norms).all()
    assert (scores.diff(dim=1) <= 0).all()


def ranks_by_definition(given):
    scores, ranks = all_scores(given), []
    for query, target in enumerate(given["targets"].tolist()):
        others = set(range(1, given["num_items"] + 1)) - seen_by(given, query) - {target}
        row = scores[query, sorted(others)]
        of_target = scores[query, target] if target else 0
        ranks.append([int((row > of_target).sum()), int((row >= of_target).sum())])
    return ranks


@pytest.mark.parametrize("size", [size[:3] for size in SIZES], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@every_implementation
def test_ranks_are_those_of_the_definition(implementation, dtype, size):
    given = arguments(*size, dtype=dtype)
    given["targets"] = torch.arange(len(given["queries"])) * 7 % (size[1] + 1)  # the first is none
    if len(given["seen_items"]):
        given["targets"][-1] = given["seen_items"][-1]  # maybe one that has been seen

    ranks, scores = called(implementation, "item_ranks", given)

    assert ranks.tolist() == ranks_by_definition(given)
    of_targets = all_scores(given).gather(1, given["targets"][:, None])[:, 0]
    assert torch.equal(scores.double(), of_targets * (given["targets"] != 0))
    side_by_side = given | {"table": packed(given["table"])}
    assert torch.equal(called(implementation, "item_ranks", side_by_side)[0], ranks)


@every_implementation
def test_ranks_in_parts_of_a_table_add_up(implementation):
    given = arguments(5, 200, 4) | {"targets": torch.tensor([3, 150, 60, 200, 61])}
    expected, scores = called(implementation, "item_ranks", given)
    zeros = torch.zeros(1, 4)

    total = torch.zeros_like(expected)
    for low, high in ((0, 60), (60, 200)):
        rows = torch.cat([zeros, given["table"][low + 1 : high + 1]])

        def local(ids, low=low, high=high):
            return torch.where((ids > low) & (ids <= high), ids - low, 0)

        part = given | {
            "table": rows,
            "num_items": high - low,
            "targets": local(given["targets"]),
            "seen_items": local(given["seen_items"]),
            "target_scores": scores,
        }
        total += called(implementation, "item_ranks", part)[0]

    assert torch.equal(total, expected)


@every_kernel
@pytest.mark.parametrize("op", ["top_k", "item_ranks"])
def test_opcheck(implementation, op):
    given = on(implementation.device, arguments(3, 9, 4, *([2] if op == "top_k" else [])))
    if op == "item_ranks":
        given["targets"] = given["seen_items"].new_tensor([1, 2, 3])
    implementation.op(op)
    overload = getattr(getattr(torch.ops, implementation.namespace), op).default
    torch.library.opcheck(overload, (), given)


WRONG = [
    ("table must be int8, float16", lambda a: {"table": a["table"].int()}),
    ("table must", lambda a: {"table": a["table"][:, :, None]}),
    ("queries must", lambda a: {"queries": a["queries"][:, 1:]}),
    ("queries must be", lambda a: {"queries": a["queries"].double()}),
    ("queries must be", lambda a: {"queries": a["queries"].half(), "table": a["table"].half()}),
    (r"k must be in 0\.\.9, got 10", lambda a: {"k": 10}),
    (r"k must be in 0\.\.2, got 3", lambda a: {"k": 3, "candidates": torch.tensor([1, 2])}),
    (r"num_items must be in 0\.\.9, got 10", lambda a: {"num_items": 10}),
    ("seen_items and seen_offsets must be given together", lambda a: {"seen_items": None}),
    ("seen_offsets must", lambda a: {"seen_offsets": a["seen_offsets"][1:]}),
    ("seen_offsets must", lambda a: {"seen_offsets": a["seen_offsets"].int()}),
    ("candidates must be", lambda a: {"candidates": torch.tensor([1.0, 2.0])}),
    ("scale must", lambda a: {"scale": torch.ones(9)}),
    ("scale must be", lambda a: {"scale": torch.ones(10).double()}),
]


@pytest.mark.parametrize(("match", "change"), WRONG)
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    given = arguments(3, 9, 4, 2)
    with pytest.raises(ValueError, match=match):
        called(implementation, "top_k", given | change(given))


@pytest.mark.parametrize("id_", [-1, 10, 2**62])
@pytest.mark.parametrize("name", ["seen_items", "candidates"])
@every_implementation
def test_a_bad_id_is_an_error_that_names_it(implementation, name, id_):
    given = arguments(1, 9, 4, 2)
    given |= {"seen_items": torch.tensor([1, 2]), "seen_offsets": torch.tensor([0, 2])}
    good = torch.tensor([2, 5])
    expected = called(implementation, "top_k", given | {name: good})
    bad = torch.tensor([id_])
    given[name] = torch.cat([good, bad] if id_ > 0 else [bad, good])

    message = f"{name} has id {id_}, outside its table of 10 rows"
    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError, match=message):
            called(implementation, "top_k", given)
        return
    found = called(implementation, "top_k", given)
    with pytest.raises(IndexError, match=message):
        implementation.raise_pending_errors()
    assert name == "seen_items" or torch.equal(found[0], expected[0])  # as if it were not there


@every_kernel
def test_parts_of_the_items_and_full_buffers_change_nothing(implementation):
    given = arguments(1, 9000, 3, 150)  # enough for blocks of their own on a GPU; many ties
    expected = best_by_definition(given)

    items, scores = called(implementation, "top_k", given)

    assert torch.equal(items, expected[0])
    assert torch.equal(scores.double(), expected[1])


@every_kernel
def test_a_target_has_the_score_by_which_it_is_ranked(implementation):
    given = random_arguments(7, 400, 50, 1, torch.float32)
    items, scores = called(implementation, "top_k", given)
    del given["k"]

    ranks, of_targets = called(implementation, "item_ranks", given | {"targets": items[:, 0]})

    assert torch.equal(of_targets, scores[:, 0])
    assert not ranks.any()


@every_kernel
def test_counts_of_parts_of_the_items_add_up(implementation):
    given = arguments(1, 9000, 3) | {"targets": torch.tensor([4321])}

    ranks, _ = called(implementation, "item_ranks", given)

    assert ranks.tolist() == ranks_by_definition(given)


@pytest.mark.parametrize("id_", [-1, 10, 2**62])
@pytest.mark.parametrize("name", ["seen_items", "targets"])
@every_implementation
def test_a_bad_id_among_ranks_is_an_error_that_names_it(implementation, name, id_):
    given = arguments(2, 9, 4) | {"targets": torch.tensor([3, 5])}
    given |= {"seen_items": torch.tensor([1, 2]), "seen_offsets": torch.tensor([0, 2, 2])}
    expected = called(implementation, "item_ranks", given)
    given[name] = torch.cat([given[name][:1], torch.tensor([id_])])

    message = f"{name} has id {id_}, outside its table of 10 rows"
    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError, match=message):
            called(implementation, "item_ranks", given)
        return
    found = called(implementation, "item_ranks", given)
    with pytest.raises(IndexError, match=message):
        implementation.raise_pending_errors()
    assert name == "seen_items" or torch.equal(found[0][0], expected[0][0])  # others are right


VALUES = [  # which a GPU does not read on the host
    ("seen_offsets must rise from 0 to at most 2, got an end of 3", {"seen_offsets": [0, 3]}),
    ("seen_offsets must rise", {"seen_offsets": [1, 2]}),
    ("candidates must ascend, got 4 after 4", {"candidates": [1, 4, 4, 5]}),
    ("candidates must ascend, got 0 after 0", {"candidates": [0, 2]}),
]


@pytest.mark.parametrize(("match", "change"), VALUES)
@every_backend
def test_a_value_that_makes_no_sense_is_an_error_on_the_cpu(backend, match, change):
    given = arguments(1, 9, 4, 2)
    given |= {"seen_items": torch.tensor([1, 2]), "seen_offsets": torch.tensor([0, 2])}
    with pytest.raises(ValueError, match=match):
        ops.top_k(**given | {n: torch.tensor(x) for n, x in change.items()}, backend=backend)
