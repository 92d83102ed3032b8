"""What kernels cannot derive is an error that names the op, never a derivative of 0."""

import pytest
import torch
from support.op_calls import arguments, call
from torch.autograd import forward_ad

from ssept_ext._extension import OPS

every_op = pytest.mark.parametrize("op", OPS)


def first_float(given):
    """The first tensor whose gradient is computed: where y is added to x, x has that of the result."""
    names = [name for name, x in given.items() if isinstance(x, torch.Tensor)]
    return "y" if "y" in names else names[0]


def output(op, given, backend):
    out = call(op, given, backend)
    return out[0] if isinstance(out, tuple) else out


@every_op
def test_a_second_derivative_is_an_error_that_names_the_op(op):
    given = arguments(op)
    name = first_float(given)
    given[name].requires_grad_()
    (gradient,) = torch.autograd.grad(
        output(op, given, "native").pow(2).sum(), given[name], create_graph=True
    )

    with pytest.raises(NotImplementedError, match=f"{op} has no second derivatives"):
        gradient.sum().backward()


@every_op
def test_a_forward_mode_derivative_is_an_error_that_names_the_op(op):
    given = arguments(op)
    name = first_float(given)

    with pytest.raises(NotImplementedError, match=f"{op} has no forward-mode derivative"):
        torch.func.jvp(
            lambda x: output(op, {**given, name: x}, "native"), (given[name],), (given[name],)
        )


@every_op
def test_the_reference_has_both(op):
    given = arguments(op)
    name = first_float(given)

    def f(x):
        return output(op, {**given, name: x}, "reference")

    with forward_ad.dual_level():
        dual = f(forward_ad.make_dual(given[name], torch.ones_like(given[name])))
        assert forward_ad.unpack_dual(dual).tangent is not None
    assert torch.autograd.gradgradcheck(f, given[name].requires_grad_())
