"""`lazy_adam` and `rowwise_adagrad`, in every implementation."""

import math

import numpy as np
import pytest
import torch
from support.implementations import ALL
from support.tolerances import assert_close

from ssept_ext import ops
from ssept_ext._extension import IN_PLACE_OPS

every_op = pytest.mark.parametrize("op", IN_PLACE_OPS)
every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
every_backend = pytest.mark.parametrize("backend", ["native", "reference"])

ROWS = 12
IDS = (0, 0, 2, 3, 7, 11, 0)
CHANGED = {
    "lazy_adam": ("table", "exp_avg", "exp_avg_sq"),
    "rowwise_adagrad": ("table", "sum_of_squares"),
}


def arguments(op, ids=IDS, width=3, rows=ROWS, dtype=torch.float64, step=3.0):
    """By the names in the schema, and in its order."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    averages = {"exp_avg": normal(rows, width), "exp_avg_sq": normal(rows, width).square()}
    sums = {"sum_of_squares": normal(rows).square()}
    is_adam = op == "lazy_adam"
    return {
        "table": normal(rows, width),
        **(averages if is_adam else sums),
        "ids": torch.tensor(ids, dtype=torch.int64),
        "grad": normal(len(ids), width),
        "learning_rate": torch.tensor(0.1, dtype=torch.float64),
        **({"step": torch.tensor(step), "beta1": 0.9, "beta2": 0.98} if is_adam else {}),
        "eps": 1e-3,
        "weight_decay": 0.1,
    }


def on(device, given):
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in given.items()}


def updated(implementation, op, given):
    """What the op makes of copies of the tensors it changes."""
    copies = on(implementation.device, given) | {
        n: given[n].to(implementation.device, copy=True) for n in CHANGED[op]
    }
    with torch.no_grad():
        implementation.op(op)(*copies.values())
    return {n: copies[n].cpu() for n in CHANGED[op]}


def bits(x):
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def adam_by_definition(table, exp_avg, exp_avg_sq, ids, grad, rate, step, beta1, beta2, eps, decay):
    for j, row in enumerate(ids):
        for i in range(len(table[row]) if row else 0):
            g = grad[j][i] + decay * table[row][i]
            m = exp_avg[row][i] = beta1 * exp_avg[row][i] + (1 - beta1) * g
            v = exp_avg_sq[row][i] = beta2 * exp_avg_sq[row][i] + (1 - beta2) * g**2
            root = math.sqrt(v / (1 - beta2**step))
            table[row][i] -= rate * (m / (1 - beta1**step)) / (root + eps)


def adagrad_by_definition(table, sum_of_squares, ids, grad, rate, eps, decay):
    for j, row in enumerate(ids):
        if row == 0:
            continue
        g = [a + decay * b for a, b in zip(grad[j], table[row], strict=True)]
        sum_of_squares[row] += sum(x**2 for x in g) / len(g)
        root = math.sqrt(sum_of_squares[row])
        table[row] = [p - rate * x / (root + eps) for p, x in zip(table[row], g, strict=True)]


def by_definition(op, given):
    """In float64, by loops."""
    numbers = {n: x.tolist() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    definitions = {"lazy_adam": adam_by_definition, "rowwise_adagrad": adagrad_by_definition}
    definitions[op](*numbers.values())
    return {n: torch.tensor(numbers[n], dtype=torch.float64) for n in CHANGED[op]}


# Rows by 1, 2 and 4 elements at a time, and wider than a warp's one look.
@pytest.mark.parametrize("width", [1, 3, 50, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_op
@every_implementation
def test_rows_are_updated_by_the_definition(implementation, op, dtype, width):
    given = arguments(op, width=width, dtype=dtype)

    actual = updated(implementation, op, given)

    exact = by_definition(op, given)
    for name, x in actual.items():
        assert x.dtype == dtype
        assert_close(x[1:], exact[name][1:])


@pytest.mark.parametrize("step", [1, 2, 10**6])
@every_implementation
def test_the_correction_of_the_bias_loses_no_digits(implementation, step):
    given = arguments("lazy_adam", dtype=torch.float32, step=float(step)) | {"beta2": 0.9999}
    given["table"].zero_()  # so that what it holds afterwards is the update

    actual = updated(implementation, "lazy_adam", given)

    assert_close(actual["table"], by_definition("lazy_adam", given)["table"])


@every_op
@every_implementation
def test_other_rows_and_row_0_keep_their_bits(implementation, op):
    given = arguments(op, dtype=torch.float32)
    others = [row for row in range(ROWS) if row == 0 or row not in IDS]
    for name in CHANGED[op]:
        given[name][others[::2]] = torch.nan
    given["grad"][given["ids"] == 0] = torch.nan

    actual = updated(implementation, op, given)

    for name, x in actual.items():
        assert torch.equal(bits(x)[others], bits(given[name])[others])
        assert torch.isfinite(x[list(IDS[2:6])]).all()


@pytest.mark.parametrize(
    ("ids", "rows", "width"),
    [((), 3, 2), ((0, 0), 3, 2), ((0, 0), 0, 2), ((1,), 3, 0)],
    ids=["no ids", "padding only", "no rows", "no columns"],
)
@every_op
@every_implementation
def test_nothing_to_update_changes_nothing(implementation, op, ids, rows, width):
    given = arguments(op, ids, width, rows)

    actual = updated(implementation, op, given)

    assert all(torch.equal(x, given[name]) for name, x in actual.items())


@every_op
@every_implementation
def test_a_gradient_that_is_no_number_reaches_its_own_row_only(implementation, op):
    given = arguments(op)
    expected = updated(implementation, op, given)
    given["grad"][3, 1] = torch.nan

    actual = updated(implementation, op, given)

    others = [row for row in range(ROWS) if row != IDS[3]]
    assert actual["table"][IDS[3]].isnan().any()
    assert all(torch.equal(x[others], expected[name][others]) for name, x in actual.items())


@every_backend
def test_with_all_rows_in_each_step_lazy_adam_is_torchs_adam(backend):
    settings = {"betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    expected = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([expected], lr=0.1, **settings)
    table = expected.detach().clone()
    averages = [torch.zeros_like(table) for _ in range(2)]

    for step in range(1, 6):
        expected.grad = torch.randn_like(table)
        adam.step()
        ids = torch.arange(1, 20)
        ops.lazy_adam(
            table, *averages, ids, expected.grad[1:].clone(), 0.1, step, **settings, backend=backend
        )

    assert_close(table[1:], expected[1:])
    for x, name in zip(averages, ("exp_avg", "exp_avg_sq"), strict=True):
        assert_close(x[1:], adam.state[expected][name][1:])


@every_backend
def test_with_some_rows_in_each_step_lazy_adam_is_torchs_sparse_adam(backend):
    # SparseAdam does not correct the bias of what it adds eps to.
    settings = {"betas": (0.9, 0.98), "eps": 1e-30}
    expected = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.SparseAdam([expected], lr=0.1, **settings)
    table = expected.detach().clone()
    averages = [torch.zeros_like(table) for _ in range(2)]

    for step in range(1, 6):
        ids = (torch.randperm(19)[:7] + 1).sort().values
        grad = torch.randn(7, 5, dtype=torch.float64)
        expected.grad = torch.sparse_coo_tensor(ids[None], grad, (20, 5), check_invariants=True)
        adam.step()
        ops.lazy_adam(
            table, *averages, ids, grad, 0.1, step, **settings, weight_decay=0.0, backend=backend
        )

    assert_close(table, expected)


def called(op, given, **changes):
    """The public function on copies of the tensors it changes, which are returned."""
    copies = given | {n: given[n].clone() for n in CHANGED[op]} | changes
    if op == "lazy_adam":
        copies["betas"] = (copies.pop("beta1"), copies.pop("beta2"))
    getattr(ops, op)(**copies)
    return [copies[n] for n in CHANGED[op]]


@every_backend
@every_op
def test_numbers_may_be_tensors_of_either_type(op, backend):
    given = arguments(op)
    numbers = {"learning_rate": 0.25} | ({"step": 2} if op == "lazy_adam" else {})
    expected = called(op, given, **numbers, backend=backend)

    for dtype in (torch.float32, torch.float64):
        tensors = {n: torch.tensor(x, dtype=dtype) for n, x in numbers.items()}
        actual = called(op, given, **tensors, backend=backend)

        assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@every_backend
@every_op
def test_a_parameter_stays_a_leaf_and_autograd_notices_its_change(op, backend):
    given = arguments(op)
    table = given["table"].requires_grad_()
    product = (table * table).sum()

    result, *_ = called(op, given, table=table, backend=backend)

    assert result is table
    assert table.is_leaf
    assert table.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@every_op
def test_each_thread_count_gives_the_same_bits(op):
    given = arguments(op, (0, *range(1, 3000, 2), 0), 50, 3000, torch.float32)
    expected = called(op, given, backend="native")
    torch.set_num_threads(1)
    actual = called(op, given, backend="native")
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@every_op
@every_kernel
def test_opcheck(implementation, op):
    given = on(implementation.device, arguments(op, dtype=torch.float32))
    overload = getattr(getattr(torch.ops, implementation.namespace), op).default
    torch.library.opcheck(overload, tuple(given.values()))


@every_op
def test_the_compiled_function_updates_the_same_rows(op):
    given = arguments(op)
    expected = called(op, given)

    actual = torch.compile(called, fullgraph=True, backend="aot_eager")(op, given)

    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@every_op
@pytest.mark.cuda
def test_a_captured_graph_reads_the_numbers_anew(op):
    given = on("cuda", arguments(op))
    copies = given | {n: given[n].clone() for n in CHANGED[op]}
    function = getattr(torch.ops.ssept_ext, op)
    called(op, given)  # what a first call sets up cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        function(*copies.values())

    given["learning_rate"].fill_(0.3)
    graph.replay()

    function(*given.values())
    assert all(torch.equal(copies[n], given[n]) for n in CHANGED[op])


WRONG = [
    ("table must", lambda a: {"table": a["table"][0]}),
    ("table must be contiguous", lambda a: {"table": torch.ones(3, ROWS).double().T}),
    ("table must be float32 or float64", lambda a: {"table": a["table"].half()}),
    ("ids must", lambda a: {"ids": a["ids"][None]}),
    ("ids must be .*(int64|Long)", lambda a: {"ids": a["ids"].int()}),
    ("ids must be contiguous", lambda a: {"ids": torch.stack([a["ids"]] * 2, 1)[:, 0]}),
    ("grad must", lambda a: {"grad": a["grad"][1:]}),
    ("grad must", lambda a: {"grad": a["grad"].float()}),
    ("grad must be contiguous", lambda a: {"grad": torch.ones(1, 3).double().expand(len(IDS), 3)}),
    ("learning_rate must", lambda a: {"learning_rate": torch.ones(1)}),
    ("learning_rate must", lambda a: {"learning_rate": torch.tensor(1)}),
    ("eps must be finite and at least 0, got -1", lambda a: {"eps": -1.0}),
    ("weight_decay must be finite and at least 0, got inf", lambda a: {"weight_decay": math.inf}),
]
OF_ADAM = [
    ("exp_avg must", lambda a: {"exp_avg": a["exp_avg"][1:]}),
    ("exp_avg_sq must", lambda a: {"exp_avg_sq": a["exp_avg_sq"][:, 1:]}),
    ("exp_avg_sq must", lambda a: {"exp_avg_sq": a["exp_avg_sq"].float()}),
    ("step must", lambda a: {"step": torch.ones(1)}),
    ("step must", lambda a: {"step": torch.tensor(1)}),
    (r"betas must be in \[0, 1\), got 1", lambda a: {"beta1": 1.0}),
    (r"betas must be in \[0, 1\), got -0.1", lambda a: {"beta2": -0.1}),
]
OF_ADAGRAD = [
    ("sum_of_squares must", lambda a: {"sum_of_squares": a["sum_of_squares"][1:]}),
    ("sum_of_squares must", lambda a: {"sum_of_squares": a["sum_of_squares"].float()}),
]


@pytest.mark.parametrize(
    ("op", "match", "change"),
    [
        *[("lazy_adam", *case) for case in WRONG + OF_ADAM],
        *[("rowwise_adagrad", *case) for case in WRONG + OF_ADAGRAD],
    ],
)
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, op, match, change):
    given = arguments(op)
    given = on(implementation.device, given | change(given))
    with pytest.raises(ValueError, match=match):
        implementation.op(op)(*given.values())


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("learning_rate", -0.5, "finite and at least 0"),
        ("learning_rate", math.nan, "finite and at least 0"),
        ("step", 0.0, "at least 1"),
        ("step", math.nan, "at least 1"),
    ],
)
@every_backend
def test_a_number_that_makes_no_sense_is_an_error_on_the_cpu(backend, name, value, limit):
    given = arguments("lazy_adam")
    with pytest.raises(ValueError, match=f"{name} must be {limit}, got {value:g}"):
        called("lazy_adam", given, **{name: value}, backend=backend)


BAD_IDS = [  # (ids, the bad one's place, error)
    ((2, 12, 0), 1, IndexError, "ids has id 12, outside its table of 12 rows"),
    ((-1, 3, 4), 0, IndexError, "ids has id -1, outside its table of 12 rows"),
    ((2**62, 3, 0), 0, IndexError, f"ids has id {2**62}, outside its table of 12 rows"),
    ((5, 3, 7), 1, ValueError, "ids must ascend, got 3 after 5"),
    ((0, 4, 4), 2, ValueError, "ids must ascend, got 4 after 4"),
]


@pytest.mark.parametrize(("ids", "place", "error", "match"), BAD_IDS, ids=[x[3] for x in BAD_IDS])
@every_op
@every_implementation
def test_a_bad_id_is_an_error_that_names_it(implementation, op, ids, place, error, match):
    given = arguments(op, ids)
    if not implementation.is_cuda_kernel:
        with pytest.raises(error, match=match):
            implementation.op(op)(*given.values())
        assert all(torch.equal(given[n], arguments(op, ids)[n]) for n in CHANGED[op])
        return
    with_bad = updated(implementation, op, given)  # which is skipped
    with pytest.raises(error, match=match):
        implementation.raise_pending_errors()
    given["ids"][place] = 0
    with_zero = updated(implementation, op, given)
    assert all(torch.equal(x, with_zero[n]) for n, x in with_bad.items())


@every_op
@pytest.mark.parametrize("implementation", ALL[1:3], indirect=True)
def test_the_far_end_of_a_table_of_more_than_four_billion_elements(implementation, op, tmp_path):
    rows, width = 2**26 + 4, 64  # of which only what is touched takes room

    def zeros(name):
        shape = (rows,) if name == "sum_of_squares" else (rows, width)
        return torch.from_numpy(np.memmap(tmp_path / name, np.float32, "w+", shape=shape))

    given = arguments(op, (1, rows - 1, 0), width, dtype=torch.float32)
    given |= {name: zeros(name) for name in CHANGED[op]}

    implementation.op(op)(*given.values())

    for name in CHANGED[op]:
        ends = torch.cat([given[name][:4], given[name][-4:]])
        touched = ends.view(8, -1).any(1).tolist()
        assert touched == [False, True, False, False, False, False, False, True]
