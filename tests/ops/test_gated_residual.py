"""`gated_residual`, forward and backward, in every implementation."""

import pytest
import torch
from support.implementations import ALL
from support.samples import amid_traps, outputs_and_gradients
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext import ops
from ssept_ext.ops import reference
from ssept_ext.ops.dropout import dropout_keep

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
SEED, SITE = torch.tensor([-(3**39)]), 2**31 + 5
# Whole vectors of any registers and rests of them, packs of 4, 2 and 1, and rows for several threads and blocks.
SHAPES = [(0, 5), (3, 0), (1, 1), (7, 50), (131, 16), (300, 33), (65, 1100)]


def inputs(rows=9, width=13, dtype=torch.float64, gated=True):
    """x, y and the gate, which is wide open or shut in places."""
    x, y, gate = torch.randn(3, rows, width, dtype=torch.float64).to(dtype)
    return [x, y, 8 * gate if gated else None]


def moved(implementation, arguments):
    return [x.to(implementation.device) if isinstance(x, torch.Tensor) else x for x in arguments]


def run(implementation, *arguments, grad=None):
    """Output and gradients."""
    op = implementation.op("gated_residual")
    grad = None if grad is None else grad.to(implementation.device)
    return outputs_and_gradients(op, moved(implementation, arguments), grad)


def plain(x, y, gate=None):
    return x + y if gate is None else x + torch.sigmoid(gate) * y


@every_implementation
def test_what_dropout_keeps_of_y_is_scaled_and_gated_and_added_to_x(implementation):
    x, y, gate = inputs()

    (out, *_) = run(implementation, x, y, gate, 0.4, SEED, SITE)

    keep = dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    assert_close(out, x + y * keep / 0.6 / (1 + torch.exp(-gate)))


@every_implementation
def test_without_a_gate_y_is_added_as_dropout_leaves_it(implementation):
    x, y, _ = inputs()
    grad = torch.randn_like(x)

    out, grad_x, grad_y = run(implementation, x, y, None, 0.4, SEED, SITE, grad=grad)

    keep = dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    assert_close(out, x + y * keep / 0.6)
    assert_close(grad_x, grad)
    assert_close(grad_y, grad * keep / 0.6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@every_kernel
def test_output_and_gradients_match_the_reference(implementation, dropout_p, shape):
    tensors, grad = inputs(*shape), torch.randn(shape, dtype=torch.float64)
    settings = (dropout_p, SEED, SITE)

    actual = run(implementation, *tensors, *settings, grad=grad)

    exact = outputs_and_gradients(reference.gated_residual, [*tensors, *settings], grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype, gated):
    tensors, grad = inputs(200, 101, dtype, gated), torch.randn(200, 101).to(dtype)

    actual = run(implementation, *tensors, grad=grad)

    exact = outputs_and_gradients(plain, [t if t is None else t.double() for t in tensors], grad)
    by_torch = outputs_and_gradients(plain, tensors, grad)
    for x, y, z in zip(actual, exact, by_torch, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_implementation
def test_a_gate_of_any_size_opens_or_shuts(implementation, dtype):
    gate = torch.tensor([[-torch.inf, -1000.0, -60.0, 60.0, 1000.0, torch.inf]]).to(dtype)
    x, y = torch.zeros_like(gate), torch.ones_like(gate)

    out, _, grad_y, grad_gate = run(implementation, x, y, gate)

    opened = torch.sigmoid(gate.double())
    assert_close(out, opened, opened.to(dtype))
    assert_close(grad_y, opened, opened.to(dtype))
    assert torch.isfinite(grad_gate).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_implementation
def test_nan_stays_where_it_is_unless_it_is_dropped(implementation, dtype):
    keep = dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    row, kept = 3, int(keep[3].int().argmax())
    dropped = int((~keep[3]).int().argmax())
    for which, column, is_nan in ((0, 5, True), (1, kept, True), (1, dropped, False), (2, 5, True)):
        tensors = inputs(dtype=dtype)
        tensors[which][row, column] = torch.nan

        out, *_ = run(implementation, *tensors, 0.4, SEED, SITE)

        expected = torch.zeros_like(keep)
        expected[row, column] = is_nan
        assert torch.equal(out.isnan().cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_nothing_beyond_a_tensor_reaches_a_result(implementation, dtype):
    x, y, gate = (amid_traps(t) for t in moved(implementation, inputs(133, 37, dtype)))
    ops_of = getattr(torch.ops, implementation.namespace)

    out = ops_of.gated_residual(x, y, gate)
    gradients = ops_of.gated_residual_backward(x, y, gate, 0.0, None, 0)

    assert all(torch.isfinite(z).all() for z in (out, *gradients))


@pytest.mark.parametrize("gated", [True, False])
@every_implementation
def test_gradcheck_with_dropout(implementation, gated):
    tensors = [t for t in moved(implementation, inputs(5, 6, gated=gated)) if t is not None]
    settings = moved(implementation, (0.4, SEED, SITE))
    op = implementation.op("gated_residual")

    def f(x, y, gate=None):
        return op(x, y, gate, *settings)

    torch.autograd.gradcheck(f, [t.requires_grad_() for t in tensors])


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    tensors = moved(implementation, inputs())
    grad = torch.randn(13, 9, dtype=torch.float64).t()
    strided = [t.t().contiguous().t() for t in tensors]
    of_strided = run(implementation, *strided, grad=grad)
    for x, y in zip(of_strided, run(implementation, *tensors, grad=grad), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("gated", [True, False])
@every_kernel
def test_opcheck(implementation, gated):
    tensors = moved(implementation, inputs(dtype=torch.float32, gated=gated))
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    op = getattr(torch.ops, implementation.namespace).gated_residual.default
    torch.library.opcheck(op, (*leaves, 0.3, SEED.to(implementation.device), SITE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_results_are_the_same_bits_with_any_number_of_threads(implementation, dtype):
    arguments = (*inputs(5000, 20, dtype), 0.3, SEED, SITE)
    grad = torch.randn(5000, 20).to(dtype)
    first = run(implementation, *arguments, grad=grad)
    torch.set_num_threads(1)
    second = run(implementation, *arguments, grad=grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_autocast_decides_on_the_type_of_the_result(backend):
    tensors = [t.requires_grad_() for t in inputs(dtype=torch.float32)]

    with torch.autocast("cpu", torch.bfloat16):
        out = ops.gated_residual(*tensors, backend=backend)
        wide = ops.gated_residual(*(t.double() for t in tensors), backend=backend)

    gradients = torch.autograd.grad(out.sum(), tensors)
    assert (out.dtype, wide.dtype) == (torch.bfloat16, torch.float64)
    assert {g.dtype for g in gradients} == {torch.float32}


def test_compiling_for_changing_numbers_of_rows_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.gated_residual, backend=counter, fullgraph=True, dynamic=True)
    for rows in (5, 4, 12, 7):
        tensors = inputs(rows)
        assert_close(compiled(*tensors), plain(*tensors))
    assert counter.frame_count <= 2


WRONG = [
    ("x must have 2 dimensions", {"x": torch.ones(3)}),
    ("y must have", {"y": torch.ones(2, 4)}),
    ("y.*[fF]loat", {"y": torch.ones(2, 3).half()}),
    ("gate must have", {"gate": torch.ones(3, 3)}),
    ("gate.*[fF]loat", {"gate": torch.ones(2, 3).double()}),
    ("x.*[iI]nt", {name: torch.ones(2, 3, dtype=torch.int32) for name in ("x", "y", "gate")}),
    ("dropout_p must be in", {"dropout_p": 1.0}),
    ("seed must be an int64 tensor of one element", {"dropout_p": 0.5}),
    ("site must be in 0..4294967295, got 4294967296", {"site": 2**32}),
]


@pytest.mark.parametrize(("match", "changes"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, changes):
    arguments = {name: torch.ones(2, 3) for name in ("x", "y", "gate")} | changes
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            arguments[name] = value.to(implementation.device)
    with pytest.raises(ValueError, match=match):
        implementation.op("gated_residual")(**arguments)
