"""`feed_forward`, forward and backward, in every implementation."""

import pytest
import torch
from support.implementations import ALL
from support.samples import amid_traps, outputs_and_gradients
from support.tolerances import HALF_TYPES, assert_close
from torch.nn import functional as F

from ssept_ext.ops import reference
from ssept_ext.ops.dropout import dropout_keep

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
SEED, SITE = torch.tensor([-(3**39)]), 2**31 + 5
# Whole vectors of any registers and rests of them, narrower and wider inside, and blocks and parts of rows with rests.
SHAPES = [(0, 5, 3), (1, 1, 1), (3, 130, 70), (131, 16, 48), (300, 33, 100), (1100, 50, 20)]


def whole_numbers(*shape):
    return torch.randint(-2, 3, shape).double()


def inputs(rows=9, width=13, inner=7, dtype=torch.float64):
    """x, weights and biases; the ReLU's inputs are .5 or more from 0, so that rounding does not change their sign."""
    tensors = (
        whole_numbers(rows, width),
        whole_numbers(inner, width),
        whole_numbers(inner) + 0.5,
        torch.randn(width, inner, dtype=torch.float64),
        torch.randn(width, dtype=torch.float64),
    )
    return [x.to(dtype) for x in tensors]


def moved(implementation, arguments):
    return [x.to(implementation.device) if isinstance(x, torch.Tensor) else x for x in arguments]


def without_norm(op):
    return lambda *arguments: op(*arguments)[:2]


def run(implementation, *arguments, grad=None):
    """Output, what the first dropout gives, and the gradients."""
    op = without_norm(implementation.op("feed_forward"))
    grad = None if grad is None else grad.to(implementation.device)
    return outputs_and_gradients(op, moved(implementation, arguments), grad)


def plain(x, weight1, bias1, weight2, bias2):
    hidden = F.relu(F.linear(x, weight1, bias1))
    return F.linear(hidden, weight2, bias2) + x, hidden.detach()


@every_implementation
def test_each_of_two_layers_has_a_dropout_of_its_own_and_the_residual_is_added_last(implementation):
    x, weight1, bias1, weight2, bias2 = inputs()

    out, hidden, *_ = run(implementation, x, weight1, bias1, weight2, bias2, 0.4, SEED, SITE)

    first = dropout_keep(torch.arange(9), 7, 0.4, SEED, SITE)
    second = dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE + 1)
    exact_hidden = torch.relu(x @ weight1.T + bias1) * first / 0.6
    assert_close(hidden, exact_hidden)
    assert_close(out, x + (exact_hidden @ weight2.T + bias2) * second / 0.6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@every_kernel
def test_output_and_gradients_match_the_reference(implementation, dropout_p, shape):
    tensors = inputs(*shape)
    grad = torch.randn(shape[:2], dtype=torch.float64)

    actual = run(implementation, *tensors, dropout_p, SEED, SITE, grad=grad)

    settings = (dropout_p, SEED, SITE)
    exact = outputs_and_gradients(without_norm(reference.feed_forward), [*tensors, *settings], grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@every_kernel
def test_another_residual_takes_the_place_of_x_in_the_sum(implementation, dropout_p, dtype):
    x, *layers = inputs(131, 16, 48, dtype)
    residual, grad = torch.randn(2, 131, 16).to(dtype)
    settings = (dropout_p, SEED, SITE)

    out, hidden, grad_x, *of_layers, grad_residual = run(
        implementation, x, *layers, *settings, residual, grad=grad
    )

    by_default = run(implementation, x, *layers, *settings, grad=grad)
    wide, plain = (
        outputs_and_gradients(
            without_norm(reference.feed_forward),
            [*(t.to(kind) for t in (x, *layers)), *settings, residual.to(kind)],
            grad.to(kind),
        )
        for kind in (torch.float64, dtype)
    )
    assert_close(out, wide[0], plain[0])
    assert_close(grad_x, wide[2], plain[2])
    assert torch.equal(grad_residual.cpu(), grad)
    for x, y in zip((hidden, *of_layers), (by_default[1], *by_default[3:]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype):
    tensors = inputs(200, 100, 60, dtype)
    grad = torch.randn(200, 100).to(dtype)

    actual = run(implementation, *tensors, grad=grad)

    exact = outputs_and_gradients(plain, [t.double() for t in tensors], grad.double())
    by_torch = outputs_and_gradients(plain, tensors, grad)
    for x, y, z in zip(actual, exact, by_torch, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


def run_with_norm(op, tensors, settings, residual, gradients, used):
    """Both outputs; and the gradients of layers, residual and norm, of the outputs that are `used`."""
    *layers, gamma, beta = leaves = [x.detach().clone().requires_grad_() for x in tensors]
    if residual is not None:
        leaves.append(residual := residual.detach().clone().requires_grad_())
    out, _, normal = op(*layers, *settings, residual, gamma, beta)
    outputs = [(out, normal)[i] for i in used]
    found = torch.autograd.grad(outputs, leaves, [gradients[i] for i in used], allow_unused=True)
    return out, normal, *(x for x in found if x is not None)


BOTH = [0, 1]


def with_norm(shape, dtype=torch.float64):
    rows, width, _ = shape
    norm = torch.randn(2, width, dtype=torch.float64).to(dtype)
    gradients = torch.randn(2, rows, width, dtype=torch.float64).to(dtype)
    return [*inputs(*shape, dtype), *norm], gradients


@pytest.mark.parametrize("shape", [x for x in SHAPES if x[1] > 1], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("other_residual", [False, True])
@every_kernel
def test_the_norm_of_the_result_and_its_gradients_match_the_reference(
    implementation, other_residual, dropout_p, shape
):
    tensors, gradients = with_norm(shape)
    residual = torch.randn_like(tensors[0]) if other_residual else None
    settings = (dropout_p, SEED, SITE)
    for used in (BOTH, [0], [1]):
        given = (tensors, settings, residual, gradients, used)
        exact = run_with_norm(reference.feed_forward, *given)

        moved_there = (moved(implementation, x) for x in (tensors, settings, [residual]))
        there, settings_there, (residual_there,) = moved_there
        on_device = gradients.to(implementation.device)
        op = implementation.op("feed_forward")
        actual = run_with_norm(op, there, settings_there, residual_there, on_device, used)

        for x, y in zip(actual, exact, strict=True):
            assert_close(x, y)


# Rows by 1, 2 and 4 elements at a time, and wider than a block's sums.
@pytest.mark.parametrize("width", [13, 50, 100, 300])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_the_norm_of_each_type_is_as_exact_as_the_policy_asks(implementation, dtype, width):
    tensors, gradients = with_norm((70, width, 30), dtype)

    def in_plain_pytorch(x, *rest):
        *layers, _, _, _, _, gamma, beta = rest
        out, hidden = plain(x, *layers)
        return out, hidden, F.layer_norm(out, out.shape[1:], gamma, beta, 1e-8)

    op, device = implementation.op("feed_forward"), implementation.device
    settings = (0.0, None, 0)
    actual = run_with_norm(
        op, moved(implementation, tensors), settings, None, gradients.to(device), BOTH
    )

    wide = [x.double() for x in tensors]
    exact = run_with_norm(in_plain_pytorch, wide, settings, None, gradients.double(), BOTH)
    by_torch = run_with_norm(in_plain_pytorch, tensors, settings, None, gradients, BOTH)
    for x, y, z in zip(actual, exact, by_torch, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_nothing_beyond_a_tensor_reaches_a_result(implementation, dtype):
    tensors = [amid_traps(x) for x in inputs(133, 37, 21, dtype)]
    tensors = moved(implementation, tensors)
    grad = amid_traps(torch.ones_like(tensors[0]))
    ops = getattr(torch.ops, implementation.namespace)

    gamma, beta = amid_traps(torch.ones_like(tensors[4])), amid_traps(torch.zeros_like(tensors[4]))

    out, hidden, normal = ops.feed_forward(*tensors, gamma=gamma, beta=beta)
    x, weight1, _, weight2, _ = tensors
    given = (grad, x, amid_traps(hidden), weight1, weight2, 0.0, None, 0, True)
    gradients = ops.feed_forward_backward(*given)
    of_norm = ops.feed_forward_backward(*given, amid_traps(out), grad, gamma)

    assert all(torch.isfinite(y).all() for y in (out, hidden, normal, *gradients, *of_norm))


@every_implementation
def test_gradcheck_with_dropout(implementation):
    tensors = [t.requires_grad_() for t in moved(implementation, inputs(5, 6, 3))]
    settings = moved(implementation, (0.4, SEED, SITE))
    op = implementation.op("feed_forward")
    torch.autograd.gradcheck(lambda *tensors: op(*tensors, *settings)[0], tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_implementation
def test_nan_in_a_row_passes_through_the_relu_and_stays_in_its_row(implementation, dtype):
    tensors = inputs(dtype=dtype)
    tensors[0][2, 3] = torch.nan

    out, hidden, *_ = run(implementation, *tensors)

    assert out[2].isnan().all()
    assert hidden[2].isnan().all()
    assert torch.isfinite(out[[0, 1, *range(3, 9)]]).all()


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    tensors = moved(implementation, inputs())
    op = implementation.op("feed_forward")
    strided = [t.t().contiguous().t() for t in tensors]
    assert torch.equal(op(*strided)[0], op(*tensors)[0])


@every_kernel
def test_opcheck(implementation):
    tensors = [t.requires_grad_() for t in moved(implementation, inputs(dtype=torch.float32))]
    op = getattr(torch.ops, implementation.namespace).feed_forward.default
    torch.library.opcheck(op, (*tensors, 0.3, SEED.to(implementation.device), SITE))
    norm = [t.requires_grad_() for t in moved(implementation, torch.randn(2, 13))]
    torch.library.opcheck(op, (*tensors, 0.3, SEED.to(implementation.device), SITE, None, *norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_gradients_are_the_same_bits_every_time(implementation, dtype):
    arguments = (*inputs(5024, 20, 30, dtype), 0.3, SEED, SITE)
    grad = torch.randn(5024, 20).to(dtype)
    first = run(implementation, *arguments, grad=grad)
    if (
        implementation.name == "native"
    ):  # the emulation's products are torch's, of which threads may change the bits
        torch.set_num_threads(1)
    second = run(implementation, *arguments, grad=grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_gradients_of_the_norm_are_the_same_bits_every_time(implementation, dtype):
    tensors, gradients = with_norm((5024, 20, 30), dtype)
    tensors, settings = (moved(implementation, x) for x in (tensors, (0.3, SEED, SITE)))
    op = implementation.op("feed_forward")
    given = (tensors, settings, None, gradients.to(implementation.device), BOTH)
    first = run_with_norm(op, *given)
    if implementation.name == "native":
        torch.set_num_threads(1)
    second = run_with_norm(op, *given)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_gradients_of_weights_over_many_rows_match_the_reference(implementation, dtype):
    tensors, gradients = with_norm((4096, 6, 9), dtype)

    def results(tensors, gradients, op):
        return run_with_norm(op, tensors, (0.0, None, 0), None, gradients, BOTH)[2:]

    op, device = implementation.op("feed_forward"), implementation.device
    actual = results(moved(implementation, tensors), gradients.to(device), op)
    wide = [x.double() for x in tensors]
    exact = results(wide, gradients.double(), reference.feed_forward)
    in_type = results(tensors, gradients, reference.feed_forward)
    for x, y, z in zip(actual, exact, in_type, strict=True):
        assert_close(x, y, z)


@every_kernel
def test_the_norm_has_no_second_derivatives(implementation):
    tensors, _ = with_norm((3, 4, 5))
    *layers, gamma, beta = (x.requires_grad_() for x in moved(implementation, tensors))
    _, _, normal = implementation.op("feed_forward")(*layers, gamma=gamma, beta=beta)
    (grad,) = torch.autograd.grad(normal.square().sum(), gamma, create_graph=True)
    with pytest.raises(NotImplementedError, match="feed_forward has no second derivatives"):
        grad.sum().backward()


WRONG = [
    ("x must have 2 dimensions", {"x": torch.ones(3)}),
    ("weight1 must have", {"weight1": torch.ones(4, 2)}),
    ("bias1 must have", {"bias1": torch.ones(3)}),
    ("weight2 must have", {"weight2": torch.ones(4, 3)}),
    ("bias2 must have", {"bias2": torch.ones(4)}),
    ("bias2.*[fF]loat", {"bias2": torch.ones(3).half()}),
    ("dropout_p must be in", {"dropout_p": 1.0}),
    ("seed must be an int64 tensor of one element", {"dropout_p": 0.5}),
    ("site must be in 0..4294967295, got 4294967296", {"site": 2**32 - 1}),
    ("residual must have", {"residual": torch.ones(2, 4)}),
    ("residual.*[fF]loat", {"residual": torch.ones(2, 3).half()}),
    ("gamma and beta must be given together", {"gamma": torch.ones(3)}),
    ("gamma must have", {"gamma": torch.ones(2), "beta": torch.ones(3)}),
    ("beta must have", {"gamma": torch.ones(3), "beta": torch.ones(1, 3)}),
    ("gamma.*[fF]loat", {"gamma": torch.ones(3).half(), "beta": torch.ones(3)}),
    ("eps must be finite and at least 0, got -1", {"eps": -1.0}),
]


@pytest.mark.parametrize(("match", "changes"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, changes):
    arguments = {
        "x": torch.ones(2, 3),
        "weight1": torch.ones(4, 3),
        "bias1": torch.ones(4),
        "weight2": torch.ones(3, 4),
        "bias2": torch.ones(3),
    } | changes
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            arguments[name] = value.to(implementation.device)
    with pytest.raises(ValueError, match=match):
        implementation.op("feed_forward")(**arguments)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@every_kernel
def test_rows_may_begin_anywhere_in_memory(implementation, dtype):
    x, *layers = moved(implementation, inputs(9, 14, 6, dtype))
    off_by_one = torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
    assert off_by_one.data_ptr() % 4 == 2
    op = implementation.op("feed_forward")

    def out_and_gradient(x):
        out = op(x.requires_grad_(), *layers)[0]
        return out, *torch.autograd.grad(out.sum(), x)

    for actual, expected in zip(out_and_gradient(off_by_one), out_and_gradient(x), strict=True):
        assert torch.equal(actual, expected)
