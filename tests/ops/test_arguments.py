"""Arguments that every op refuses, or takes at any size: devices, backends, numbers, empty tensors."""

import math

import pytest
import torch
from support.implementations import ALL
from support.op_calls import arguments, call
from support.samples import outputs_and_gradients

from ssept_ext import ops
from ssept_ext._extension import ALL_OPS, IN_PLACE_OPS, OPS, RANKING_OPS
from ssept_ext.ops import reference

every_op = pytest.mark.parametrize("op", OPS)
every_op_of_all = pytest.mark.parametrize("op", ALL_OPS)
every_backend = pytest.mark.parametrize("backend", ["native", "reference"])
IDS = (
    "items",
    "users",
    "positions",
    "ids",
    "positives",
    "negatives",
    "seen_items",
    "candidates",
    "targets",
)
EXTENTS = {
    "sequences": {"lengths": ()},
    "tokens": {"lengths": (0, 0)},
    "features of items": {"item_width": 0},
    "features of users": {"user_width": 0},
    "features": {"item_width": 0, "user_width": 0},
    "scored items": {"num_items": 0},
    "heads": {"heads": 0},
    "rows of tables": {"item_rows": 0, "user_rows": 0},
    "positions": {"position_rows": 0, "lengths": ()},
}


@every_op_of_all
def test_tensors_on_two_devices_are_an_error_that_names_the_argument(op):
    given = arguments(op, dropout_p=0.5 if "dropout_p" in arguments(op) else 0.0)
    first, *others = (name for name, x in given.items() if isinstance(x, torch.Tensor))
    for name in others:
        with pytest.raises(ValueError, match=f"{name} must be on the device of {first}"):
            call(op, given | {name: given[name].to("meta")}, "native")


@every_op
def test_on_the_meta_device_an_op_gives_shapes(op):
    given = arguments(op)
    on_meta = {n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in given.items()}

    out, expected = call(op, on_meta, "auto"), call(op, given, "auto")

    for x, y in zip(*((t if isinstance(t, tuple) else (t,)) for t in (out, expected)), strict=True):
        assert (x.device.type, x.shape, x.dtype) == ("meta", y.shape, y.dtype)


@every_op_of_all
def test_a_backend_that_there_is_not_is_an_error_that_names_it(op):
    with pytest.raises(ValueError, match='backend must be one of .* got "cuda"'):
        call(op, arguments(op), "cuda")


@every_backend
@pytest.mark.parametrize(
    ("op", "name", "value", "limit"),
    [
        *(
            (op, name, value, limit)
            for op in (
                "user_item_embedding",
                "causal_attention",
                "multi_head_attention",
                "feed_forward",
                "gated_residual",
                "swiglu",
            )
            for name, value, limit in [
                ("dropout_p", -0.1, r"in \[0, 1\)"),
                ("dropout_p", 1.0, r"in \[0, 1\)"),
                ("dropout_p", math.nan, r"in \[0, 1\)"),
                ("site", 2**32, "in 0..4294967295"),
                ("site", -1, "in 0..4294967295"),
            ]
        ),
        *(
            (op, name, x, "at least 0")
            for op, name in [
                ("position_layer_norm", "eps"),
                *((op, name) for op in IN_PLACE_OPS for name in ("eps", "weight_decay")),
            ]
            for x in (-1.0, math.nan, math.inf)
        ),
        *(
            (op, name, value, limit)
            for op in ("causal_attention", "multi_head_attention")
            for name, value, limit in [
                ("scale", math.nan, "finite"),
                ("scale", -math.inf, "finite"),
                ("max_seqlen_q", -1, "at least 0"),
                ("max_seqlen_k", -(2**63), "at least 0"),
            ]
        ),
        *(("sampled_loss", "beta", x, "finite") for x in (math.nan, math.inf)),
    ],
)
def test_a_number_out_of_range_is_an_error_with_its_name_and_limit(op, name, value, limit, backend):
    with pytest.raises(
        ValueError, match=f"{name} must be .*{limit}, got {str(value).removesuffix('.0')}"
    ):
        call(op, arguments(op) | {name: value}, backend)


@every_backend
def test_an_upper_bound_of_lengths_may_be_as_large_as_it_likes(backend):
    given = arguments("causal_attention")
    bounds = {"max_seqlen_q": 2**62, "max_seqlen_k": 2**62}

    out, _ = call("causal_attention", given | bounds, backend)

    assert torch.equal(out, call("causal_attention", given, backend)[0])


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("missing", EXTENTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
def test_an_op_takes_tensors_of_no_elements(implementation, op, missing, dropout_p):
    names, given = zip(*arguments(op, **EXTENTS[missing], dropout_p=dropout_p).items(), strict=True)

    def by_name(function):
        return lambda *tensors: function(**dict(zip(names, tensors, strict=True)))

    kernel = by_name(implementation.op(op))
    if op == "causal_attention" and given[0].shape[2] == 0:
        with pytest.raises(ValueError, match=r"head size of q must be in 1\.\.256, got 0"):
            kernel(*given)
        return
    if op == "multi_head_attention" and given[0].shape[1] == 0:
        with pytest.raises(ValueError, match="num_heads must divide the width of x_q, 0, got"):
            kernel(*given)
        return
    moved = [x.to(implementation.device) if isinstance(x, torch.Tensor) else x for x in given]

    def results(function, tensors):
        if op == "multi_head_attention":  # whose other outputs are for its backward
            return outputs_and_gradients(lambda *x: function(*x)[0], tensors)
        return outputs_and_gradients(function, tensors)

    actual = results(kernel, moved)

    expected = results(by_name(getattr(reference, op)), given)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y)


@pytest.mark.parametrize("missing", ["sequences", "tokens", "features of items", "rows of tables"])
@pytest.mark.parametrize("op", RANKING_OPS)
@pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
def test_a_ranking_takes_tensors_of_no_elements(implementation, op, missing):
    given = arguments(op, **EXTENTS[missing])
    moved = {
        n: x.to(implementation.device) if isinstance(x, torch.Tensor) else x
        for n, x in given.items()
    }

    actual = implementation.op(op)(**moved)

    expected = getattr(reference, op)(**given)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(actual, expected, strict=True))


def test_rows_without_elements_cost_no_time():
    x, none = torch.zeros(2**40, 0), torch.zeros(0)
    weight = torch.zeros(0, 0)

    out, *_ = torch.ops.ssept_ext.feed_forward(x, weight, none, weight, none)
    gated, swiglu = ops.gated_residual(x, x, x), ops.swiglu(x)

    assert out.shape == gated.shape == swiglu.shape == x.shape


@pytest.mark.parametrize("id_", [-(2**63), -(2**63) + 1, 2**63 - 1])
@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in ALL_OPS for name in IDS if name in arguments(op)],
)
@every_backend
def test_every_number_outside_a_table_is_an_error(backend, op, name, id_):
    given = arguments(op)
    given[name].view(-1)[-1] = id_

    with pytest.raises(IndexError, match=f"{name} has id {id_}, outside its table"):
        call(op, given, backend)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("op", ["user_item_embedding", "sampled_logits"])
def test_booleans_are_no_ids(op, backend):
    given = arguments(op)

    with pytest.raises(ValueError, match="items must be"):
        call(op, given | {"items": given["items"].bool()}, backend)
