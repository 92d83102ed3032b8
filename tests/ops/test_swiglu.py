"""`swiglu`, forward and backward, in every implementation."""

import pytest
import torch
from support.implementations import ALL
from support.samples import amid_traps, outputs_and_gradients
from support.tolerances import HALF_TYPES, assert_close
from torch.nn import functional as F

from ssept_ext import ops
from ssept_ext.ops import reference
from ssept_ext.ops.dropout import dropout_keep

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
SEED, SITE = torch.tensor([-(3**39)]), 2**31 + 5
# Rows and columns of the result: whole vectors of any registers and rests of them, packs of 4, 2 and 1, several blocks.
SHAPES = [(0, 5), (3, 0), (1, 1), (7, 50), (131, 16), (300, 33), (65, 1100)]


def halves(rows=9, width=13, dtype=torch.float64):
    """u, of which the left half is far from 0 in places."""
    u = torch.randn(rows, 2 * width, dtype=torch.float64)
    u[:, :width] *= 8
    return u.to(dtype)


def run(implementation, u, *settings, grad=None):
    """Output and gradient."""
    device = implementation.device
    moved = [x.to(device) if isinstance(x, torch.Tensor) else x for x in (u, *settings)]
    grad = None if grad is None else grad.to(device)
    return outputs_and_gradients(implementation.op("swiglu"), moved, grad)


def plain(u):
    a, b = u.chunk(2, 1)
    return F.silu(a) * b


@every_implementation
def test_the_left_half_gates_itself_and_then_the_right_one(implementation):
    u = halves()

    (out, _) = run(implementation, u, 0.4, SEED, SITE)

    keep = dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    a, b = u[:, :13], u[:, 13:]
    assert_close(out, a / (1 + torch.exp(-a)) * b * keep / 0.6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@every_kernel
def test_output_and_gradient_match_the_reference(implementation, dropout_p, shape):
    u, grad = halves(*shape), torch.randn(shape, dtype=torch.float64)
    settings = (dropout_p, SEED, SITE)

    actual = run(implementation, u, *settings, grad=grad)

    exact = outputs_and_gradients(reference.swiglu, [u, *settings], grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype):
    u, grad = halves(200, 101, dtype), torch.randn(200, 101).to(dtype)

    actual = run(implementation, u, grad=grad)

    exact = outputs_and_gradients(plain, [u.double()], grad.double())
    by_torch = outputs_and_gradients(plain, [u], grad)
    for x, y, z in zip(actual, exact, by_torch, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_implementation
def test_large_numbers_pass_or_vanish(implementation, dtype):
    u = torch.tensor([[-1000.0, -90.0, 90.0, 1000.0, 1.0, 1.0, 1.0, 1.0]]).to(dtype)

    out, grad_u = run(implementation, u)

    passed = torch.tensor([[0.0, 0.0, 90.0, 1000.0]])
    assert_close(out, passed, passed.to(dtype))
    expected = torch.cat([(passed > 0).double(), passed.double()], 1)
    assert_close(grad_u, expected, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_implementation
def test_nan_stays_where_it_is_unless_it_is_dropped(implementation, dtype):
    keep = dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    row, kept = 3, int(keep[3].int().argmax())
    dropped = int((~keep[3]).int().argmax())
    for half in (0, 1):
        for column in (kept, dropped):
            u = halves(dtype=dtype)
            u[row, 13 * half + column] = torch.nan

            out, _ = run(implementation, u, 0.4, SEED, SITE)

            expected = torch.zeros_like(keep)
            expected[row, column] = column == kept
            assert torch.equal(out.isnan().cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_nothing_beyond_a_tensor_reaches_a_result(implementation, dtype):
    u = amid_traps(halves(133, 37, dtype).to(implementation.device))
    grad = amid_traps(torch.ones_like(u[:, :37]))
    ops_of = getattr(torch.ops, implementation.namespace)

    assert torch.isfinite(ops_of.swiglu(u)).all()
    assert torch.isfinite(ops_of.swiglu_backward(grad, u, 0.0, None, 0)).all()


@every_implementation
def test_gradcheck_with_dropout(implementation):
    u, seed = (x.to(implementation.device) for x in (halves(5, 6), SEED))
    op = implementation.op("swiglu")
    torch.autograd.gradcheck(lambda u: op(u, 0.4, seed, SITE), u.requires_grad_())


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    u, grad = halves(), torch.randn(13, 9, dtype=torch.float64).t()
    of_strided = run(implementation, u.t().contiguous().t(), grad=grad)
    for x, y in zip(of_strided, run(implementation, u, grad=grad), strict=True):
        assert torch.equal(x, y)


@every_kernel
def test_opcheck(implementation):
    u = halves(dtype=torch.float32).to(implementation.device).requires_grad_()
    op = getattr(torch.ops, implementation.namespace).swiglu.default
    torch.library.opcheck(op, (u, 0.3, SEED.to(implementation.device), SITE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_results_are_the_same_bits_with_any_number_of_threads(implementation, dtype):
    u, grad = halves(5000, 20, dtype), torch.randn(5000, 20).to(dtype)
    first = run(implementation, u, 0.3, SEED, SITE, grad=grad)
    torch.set_num_threads(1)
    second = run(implementation, u, 0.3, SEED, SITE, grad=grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_autocast_decides_on_the_type_of_the_result(backend):
    u = halves(dtype=torch.float32).requires_grad_()

    with torch.autocast("cpu", torch.bfloat16):
        out = ops.swiglu(u, backend=backend)
        wide = ops.swiglu(u.double(), backend=backend)

    (gradient,) = torch.autograd.grad(out.sum(), u)
    assert (out.dtype, wide.dtype) == (torch.bfloat16, torch.float64)
    assert gradient.dtype == torch.float32


def test_compiling_for_changing_numbers_of_rows_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.swiglu, backend=counter, fullgraph=True, dynamic=True)
    for rows in (5, 4, 12, 7):
        u = halves(rows)
        assert_close(compiled(u), plain(u))
    assert counter.frame_count <= 2


WRONG = [
    ("u must have 2 dimensions", {"u": torch.ones(4)}),
    (r"u must have an even number of columns, got shape \(2, 5\)", {"u": torch.ones(2, 5)}),
    ("u.*[iI]nt", {"u": torch.ones(2, 4, dtype=torch.int32)}),
    ("dropout_p must be in", {"dropout_p": 1.0}),
    ("seed must be an int64 tensor of one element", {"dropout_p": 0.5}),
    ("site must be in 0..4294967295, got 4294967296", {"site": 2**32}),
]


@pytest.mark.parametrize(("match", "changes"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, changes):
    arguments = {"u": torch.ones(2, 4)} | changes
    arguments["u"] = arguments["u"].to(implementation.device)
    with pytest.raises(ValueError, match=match):
        implementation.op("swiglu")(**arguments)
