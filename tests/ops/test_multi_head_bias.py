"""What distances and times add to the scores of `multi_head_attention`, in every implementation, and its gradients."""

import pytest
import torch
from support.attention import every_implementation, every_kernel
from support.op_calls import arguments
from support.samples import RAGGED, Ragged, ragged_id
from support.tolerances import HALF_TYPES, assert_close
from torch.nn import functional as F

from ssept_ext import ops
from ssept_ext.ops import reference
from ssept_ext.ops.relative_bias import TIME_BUCKETS

MANY_TILES = Ragged("many tiles", (70, 1, 0, 33), spare=3)
TABLES = ("position_bias", "time_bias")

which = pytest.mark.parametrize(
    "tables", [TABLES[:1], TABLES[1:], TABLES], ids=["position", "time", "both"]
)


def some(ragged=MANY_TILES, heads=2, head_size=5, tables=TABLES, **changes):
    """Arguments of a call with these tables, in float64; as layers do, with zeros in tail padding."""
    given = arguments(
        "multi_head_attention", lengths=ragged.lengths, spare=ragged.spare, item_width=head_size
    )
    given["x_q"][sum(ragged.lengths) :] = 0
    unused = {n: None for n in TABLES if n not in tables}
    if "time_bias" not in tables:
        unused |= {"query_times": None, "key_times": None}
    return given | unused | changes


def of_type(given, dtype):
    """In this type, with biases of float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        n: x.to(wide if n in TABLES else dtype)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for n, x in given.items()
    }


def results(given, op, grad, device="cpu"):
    """The output, and the gradient of every floating tensor by its name."""
    moved = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    leaves = {
        n: x.detach().clone().requires_grad_()
        for n, x in moved.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    }
    out = op(**moved | leaves)[0]
    gradients = torch.autograd.grad(out, list(leaves.values()), grad.to(device))
    return {"out": out.cpu()} | {
        n: x.cpu() for n, x in zip(leaves, gradients, strict=True) if n != "k_bias"
    }


def in_parts(*, x_q, x_k, num_heads, residual, **given):
    """The op as three linear layers, an attention with biases, and a residual."""
    q, k, v = (
        F.linear(x, given.pop(f"{n}_weight"), given.pop(f"{n}_bias")).unflatten(1, (num_heads, -1))
        for n, x in (("q", x_q), ("k", x_k), ("v", x_k))
    )
    attended = reference.causal_attention(q, k, v, **given)[0].flatten(1)
    return (attended + x_q if residual else attended,)


def assert_as_in_parts(given, implementation):
    grad = torch.randn_like(given["x_q"])
    grad[given["cu_seqlens_q"][-1] :] = 0
    actual = results(given, implementation.op("multi_head_attention"), grad, implementation.device)
    exact = results(given, in_parts, grad)
    assert actual.keys() == exact.keys()
    for name, x in actual.items():
        assert_close(x, exact[name])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_scores_have_the_biases_of_causal_attention(implementation, ragged, residual):
    given = some(ragged, dropout_p=0.4, residual=residual)
    assert_as_in_parts(given, implementation)


@which
@every_implementation
def test_either_bias_may_be_left_out(implementation, tables):
    assert_as_in_parts(some(head_size=70, tables=tables, dropout_p=0.3), implementation)


@every_implementation
def test_fewer_queries_than_keys_are_the_newest(implementation):
    given = some(Ragged("", (5, 1, 17, 0, 2)))
    given["x_q"] = torch.randn(7, 10).double()
    given["query_times"] = torch.tensor([500, 600, 2000, 2300, 2300, 9, 2500])
    given["cu_seqlens_q"] = torch.tensor([0, 1, 2, 5, 6, 7], dtype=torch.int32)
    assert_as_in_parts(given | {"max_seqlen_q": 3}, implementation)


@every_implementation
def test_tables_of_zeros_change_nothing(implementation):
    op, grad = implementation.op("multi_head_attention"), torch.randn(107, 10).double()
    with_zeros = some()
    for name in TABLES:
        with_zeros[name].zero_()
    actual = results(with_zeros, op, grad, implementation.device)
    exact = results(some(tables=()), op, grad, implementation.device)
    for name, x in exact.items():
        assert_close(actual[name], x)


@pytest.mark.parametrize("head_size", [40, 100, 128])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_kernel
def test_gradients_of_biases_are_float32_for_each_type(implementation, dtype, head_size):
    given = of_type(some(head_size=head_size, scale=head_size**-0.5), dtype)
    for of in "qkv":
        given[f"{of}_weight"] /= (2 * head_size) ** 0.5
    grad = torch.randn_like(given["x_q"])
    grad[-3:] = 0
    op = implementation.op("multi_head_attention")
    actual = results(given, op, grad, implementation.device)
    exact = results(of_type(given, torch.float64), in_parts, grad.double())
    error = 1e-5 if dtype == torch.float32 else 5e-2
    for name in TABLES:
        assert actual[name].dtype == torch.float32
        assert (actual[name] - exact[name]).abs().max() <= error * exact[name].abs().max()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_under_autocast_biases_stay_float32(backend):
    given = of_type(some(), torch.float32)
    leaves = {n: given[n].requires_grad_() for n in TABLES}
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.multi_head_attention(**given, backend=backend)
    gradients = torch.autograd.grad(out.sum(), list(leaves.values()))
    assert out.dtype == torch.bfloat16
    assert {g.dtype for g in gradients} == {torch.float32}


@which
@every_kernel
def test_opcheck(implementation, tables):
    given = of_type(some(Ragged("", (5, 2)), tables=tables), torch.float32)
    leaves = {
        n: x.to(implementation.device).requires_grad_(x.is_floating_point())
        if isinstance(x, torch.Tensor)
        else x
        for n, x in given.items()
    }
    op = getattr(torch.ops, implementation.namespace).multi_head_attention.default
    torch.library.opcheck(op, (), leaves)


@every_kernel
def test_results_repeat_bit_by_bit_with_any_number_of_threads(implementation):
    given = of_type(some(Ragged("", (600, 100, 30)), head_size=20), torch.float32)
    op, grad = implementation.op("multi_head_attention"), torch.randn(730, 40)
    first = results(given, op, grad, implementation.device)
    torch.set_num_threads(1)
    second = results(given, op, grad, implementation.device)
    torch.set_num_threads(2)
    for name in TABLES:
        assert torch.equal(first[name], second[name])


@every_kernel
def test_on_cuda_a_head_of_more_than_128_is_a_value_error(implementation):
    given = of_type(some(Ragged("", (5, 2)), head_size=129), torch.float32)
    if implementation.is_cuda_kernel:
        with pytest.raises(ValueError, match=r"q must be in 1..128 with position_bias.*, got 129"):
            results(given, implementation.op("multi_head_attention"), torch.zeros(7, 258))
    else:
        implementation.op("multi_head_attention")(**given)


WRONG = [
    ("position_bias must have at least 70 columns", {"position_bias": torch.zeros(2, 69).double()}),
    ("position_bias must", {"position_bias": torch.zeros(1, 200).double()}),
    ("position_bias must", {"position_bias": torch.zeros(2, 200)}),
    ("time_bias must", {"time_bias": torch.zeros(2, TIME_BUCKETS - 1).double()}),
    ("given together", {"time_bias": None}),
    ("given together", {"query_times": None}),
    ("given together", {"key_times": None}),
    ("query_times must", {"query_times": torch.zeros(106).long()}),
    ("key_times must", {"key_times": torch.zeros(107)}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    given = some() | change
    moved = [
        x.to(implementation.device) if isinstance(x, torch.Tensor) else x for x in given.values()
    ]
    with pytest.raises(ValueError, match=match):
        implementation.op("multi_head_attention")(**dict(zip(given, moved, strict=True)))
