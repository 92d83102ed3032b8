"""`bias_dropout`, forward and backward, in every implementation."""

import pytest
import torch
from support.implementations import ALL
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext.ops import reference

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
SEED, SITE = torch.tensor([-(3**39)]), 2**31 + 5


def inputs(rows=9, width=13, dtype=torch.float64):
    return [
        torch.randn(shape, dtype=torch.float64).to(dtype) for shape in ((rows, width), (width,))
    ]


def gradients(op, tensors, grad, *settings, device="cpu"):
    """Output, and the gradients of the tensors given: x, bias and perhaps residual."""
    tensors, grad = [t.to(device) for t in tensors], grad.to(device)
    settings = [s.to(device) if isinstance(s, torch.Tensor) else s for s in settings]
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    x, bias, *residual = leaves
    out = op(x, bias, residual[0] if residual else None, *settings)
    return out, *torch.autograd.grad(out, leaves, grad)


@every_implementation
def test_bias_is_added_then_relu_then_dropout(implementation):
    x, bias = inputs()
    op, device = implementation.op("bias_dropout"), implementation.device
    out = op(x.to(device), bias.to(device), None, True, 0.4, SEED.to(device), SITE)
    keep = reference.dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    assert_close(out, torch.relu(x + bias) * keep / 0.6)


@every_implementation
def test_the_residual_is_added_last(implementation):
    x, bias = inputs()
    residual = torch.randn_like(x)
    op, device = implementation.op("bias_dropout"), implementation.device
    tensors = (t.to(device) for t in (x, bias, residual))
    out = op(*tensors, False, 0.4, SEED.to(device), SITE)
    keep = reference.dropout_keep(torch.arange(9), 13, 0.4, SEED, SITE)
    assert_close(out, residual + (x + bias) * keep / 0.6)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (700, 33), (1100, 100), (3, 1030)], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("variant", ["plain", "relu", "residual"])
@every_kernel
def test_output_and_gradients_match_the_reference(implementation, variant, dropout_p, shape):
    tensors = inputs(*shape)
    if variant == "residual":
        tensors.append(torch.randn(shape, dtype=torch.float64))
    grad = torch.randn(shape, dtype=torch.float64)
    settings = (variant == "relu", dropout_p, SEED, SITE)
    op, device = implementation.op("bias_dropout"), implementation.device
    actual = gradients(op, tensors, grad, *settings, device=device)
    exact = gradients(reference.bias_dropout, tensors, grad, *settings)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype):
    tensors = inputs(200, 100, dtype)
    grad = torch.randn(200, 100).to(dtype)
    wide = [t.double() for t in tensors]
    exact = gradients(reference.bias_dropout, wide, grad.double(), True)
    plain = gradients(lambda x, bias, *_: torch.relu(x + bias), tensors, grad)
    op, device = implementation.op("bias_dropout"), implementation.device
    actual = gradients(op, tensors, grad, True, device=device)
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@every_implementation
def test_nan_passes_through_the_relu(implementation):
    x, bias = (t.to(implementation.device) for t in inputs())
    x[2, 3] = torch.nan
    assert implementation.op("bias_dropout")(x, bias, None, True)[2, 3].isnan()


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    x, bias = (t.to(implementation.device) for t in inputs())
    op = implementation.op("bias_dropout")
    assert torch.equal(op(x.t().contiguous().t(), bias, x.t().contiguous().t()), op(x, bias, x))


@every_kernel
def test_opcheck(implementation):
    device = implementation.device
    x, bias = (t.to(device).requires_grad_() for t in inputs(dtype=torch.float32))
    residual = torch.randn(9, 13, device=device, requires_grad=True)
    op = getattr(torch.ops, implementation.namespace).bias_dropout.default
    torch.library.opcheck(op, (x, bias, residual, False, 0.3, SEED.to(device), SITE))
    torch.library.opcheck(op, (x, bias, None, True, 0.3, SEED.to(device), SITE))


@every_kernel
def test_gradients_are_the_same_bits_every_time(implementation):
    op, device = implementation.op("bias_dropout"), implementation.device
    tensors = inputs(5000, 100, torch.float32)
    grad = torch.randn(5000, 100)
    first = gradients(op, tensors, grad, True, 0.3, SEED, SITE, device=device)
    torch.set_num_threads(1)
    second = gradients(op, tensors, grad, True, 0.3, SEED, SITE, device=device)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


WRONG = [
    ("x must have 2 dimensions", {"x": torch.ones(3)}),
    ("bias must have", {"bias": torch.ones(4)}),
    ("bias.*[fF]loat", {"bias": torch.ones(3).half()}),
    ("residual must have", {"residual": torch.ones(1, 3)}),
    ("relu and residual cannot be combined", {"residual": torch.ones(2, 3), "relu": True}),
    ("dropout_p must be in", {"dropout_p": 1.0}),
    ("seed must be an int64 tensor of one element", {"dropout_p": 0.5}),
]


@pytest.mark.parametrize(("match", "changes"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, changes):
    arguments = {"x": torch.ones(2, 3), "bias": torch.ones(3)} | changes
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            arguments[name] = value.to(implementation.device)
    with pytest.raises(ValueError, match=match):
        implementation.op("bias_dropout")(**arguments)
