"""Hostile arguments of every op: kernel and reference give the same result, or both an error that names an argument."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.op_calls import arguments, with_gradients

from ssept_ext._extension import ALL_OPS

every_call = settings(max_examples=150)
every_op = pytest.mark.parametrize("op", ALL_OPS)

EXTENTS = (
    "item_rows",
    "user_rows",
    "position_rows",
    "item_width",
    "user_width",
    "num_items",
    "heads",
)
extents = st.fixed_dictionaries(
    {"lengths": st.lists(st.integers(0, 4), max_size=4).map(tuple), "spare": st.integers(0, 2)},
    optional={name: st.integers(0, 5) for name in EXTENTS}
    | {"dropout_p": st.sampled_from([0.3, 0.9])},
)
integers = st.sampled_from(
    [-(2**63), -(2**63) + 1, -(2**31), -1, 0, 1, 2, 5, 2**31 - 1, 2**31, 2**32, 2**63 - 1]
)
floats = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1e-300, 0.5, 1.0, 2.0, math.inf, math.nan])
types = st.sampled_from(
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.complex64,
    ]
)


OPTIONAL = (
    "users",
    "user_weight",
    "seed",
    "residual",
    "gate",
    "log_q",
    "seen_items",
    "candidates",
    "scale",
)


@st.composite
def shaped(draw, x):
    """A tensor of another shape, type or layout."""
    if x.dim() and draw(st.booleans()):
        dim = draw(st.integers(0, x.dim() - 1))
        return draw(
            st.sampled_from(
                [
                    torch.cat([x, x], dim),
                    x.narrow(dim, 0, max(x.shape[dim] - 1, 0)),
                    x.flip(dim),
                    x.select(dim, 0) if x.shape[dim] else x.unsqueeze(dim),
                    x.transpose(0, dim).contiguous().transpose(0, dim),
                    torch.stack([x, x], -1)[..., 0],
                    x.narrow(dim, 0, 1).expand_as(x) if x.shape[dim] else x,
                ]
            )
        )
    return x.to(draw(types)) if draw(st.booleans()) else x.unsqueeze(-1)


@st.composite
def changed(draw, name, value):
    """A value of the same kind, maybe one that makes no sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return draw(st.sampled_from(["bce", "bpr", "sampled_softmax", "hinge"]))
    if isinstance(value, float):
        return draw(floats)
    if isinstance(value, int):
        return draw(integers)
    if isinstance(value, tuple):
        return (*value[1:], draw(floats))
    if name in OPTIONAL and draw(st.booleans()):
        return None
    if value.is_floating_point() or not value.numel() or draw(st.booleans()):
        return draw(shaped(value))
    value = value.clone()
    number = draw(integers)
    if value.dtype == torch.int32:
        number = max(-(2**31), min(number, 2**31 - 1))
    value.view(-1)[draw(st.integers(0, value.numel() - 1))] = number
    return value


def outcome(op: str, call: dict[str, Any], backend: str) -> list[torch.Tensor] | Exception:
    try:
        return with_gradients(op, call, backend)
    except (ValueError, IndexError) as error:
        return error


@every_op
@given(st.data())
@every_call
def test_kernel_and_reference_agree_on_what_they_take_and_what_they_make_of_it(op, data):
    call = arguments(op, **data.draw(extents))
    for name in data.draw(st.lists(st.sampled_from(sorted(call)), max_size=2)):
        if call[name] is not None:
            call[name] = data.draw(changed(name, call[name]))

    native, reference = (outcome(op, call, backend) for backend in ("native", "reference"))

    if isinstance(native, Exception) or isinstance(reference, Exception):
        assert type(native) is type(reference), (native, reference)
        for error in (native, reference):
            assert any(name in str(error) for name in call), error
    else:
        for x, y in zip(native, reference, strict=True):
            if x is not None:
                torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6, equal_nan=True)
