"""What distances and times add to the scores of `causal_attention`, forward and backward, in every implementation."""

from dataclasses import replace

import pytest
import torch
from support.attention import (
    arguments,
    attention,
    by_plain_loops,
    every_implementation,
    every_kernel,
    gradients,
    with_bias,
)
from support.implementations import ALL
from support.samples import RAGGED, Ragged, ragged_id
from support.tolerances import assert_close

from ssept_ext.ops import padded_causal_attention, reference, time_buckets

MANY_TILES = Ragged("many tiles", (70, 1, 0, 33), spare=3)

biases = pytest.mark.parametrize(
    ("position", "time"), [(True, False), (False, True), (True, True)], ids=["p", "t", "pt"]
)


def assert_gradients_are_exact(a, implementation):
    """Those of the reference, which autograd makes of what is compared with plain loops below."""
    grad = torch.randn(a.q.shape, dtype=torch.float64)
    grad[a.cu_seqlens_q[-1] :] = 0
    actual = gradients(a, attention(implementation), grad)
    for x, exact in zip(actual, gradients(a, reference.causal_attention, grad), strict=True):
        assert_close(x, exact)


def widened(a):
    numbers = {n: x for n, x in vars(a).items() if torch.is_tensor(x) and x.is_floating_point()}
    return replace(a, **{n: x.double() for n, x in numbers.items()})


@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_a_score_has_the_biases_of_its_distance_and_its_time_added(implementation, ragged):
    a = with_bias(arguments(ragged, heads=2))
    a = replace(a, dropout_p=0.4, seed=torch.tensor([5]), site=4)
    out, lse = a.call(attention(implementation))
    exact_out, exact_lse = by_plain_loops(a)
    assert_close(out, exact_out)
    assert_close(lse, exact_lse)


@biases
@every_kernel
def test_gradients_are_those_of_the_reference(implementation, position, time):
    a = with_bias(arguments(MANY_TILES, heads=2, head_size=70), position, time)
    assert_gradients_are_exact(replace(a, dropout_p=0.3, seed=torch.tensor([5])), implementation)


@every_implementation
def test_fewer_queries_than_keys_are_the_newest(implementation):
    a = with_bias(arguments(queries=(1, 1, 3, 0, 2)))
    assert_close(a.call(attention(implementation))[0], by_plain_loops(a)[0])
    assert_gradients_are_exact(a, implementation)


@pytest.mark.parametrize("unit", [1, 10**15])
@every_kernel
def test_times_may_be_in_any_order_and_unit(implementation, unit):
    a = with_bias(arguments(MANY_TILES), unit=unit)
    a = replace(a, key_times=a.key_times[torch.randperm(len(a.key_times))])
    assert_gradients_are_exact(a, implementation)


@pytest.mark.parametrize(
    ("dtype", "allow_tf32", "head_size"),
    [
        (torch.float32, False, 40),
        (torch.float32, True, 40),
        (torch.float32, True, 100),
        (torch.float32, False, 128),
        (torch.float16, False, 40),
        (torch.bfloat16, False, 100),
    ],
    ids=str,
)
@every_kernel
def test_gradients_of_biases_are_float32_for_each_type(
    implementation, dtype, allow_tf32, head_size
):
    a = with_bias(arguments(MANY_TILES, heads=2, head_size=head_size, dtype=dtype))
    a = replace(a, allow_tf32=allow_tf32)
    grad = torch.randn(a.q.shape).to(dtype)
    grad[-3:] = 0  # tail padding
    actual = gradients(a, attention(implementation), grad)
    exact = gradients(widened(a), reference.causal_attention, grad.double())
    error = {torch.float32: 1e-2 if allow_tf32 else 1e-5}.get(dtype, 3e-2)
    for x, y in zip(actual[4:], exact[4:], strict=True):
        assert x.dtype == torch.float32
        assert (x.double() - y).abs().max() <= error * y.abs().max()


@every_implementation
def test_gradcheck(implementation):
    a = with_bias(arguments(Ragged("small", (2, 0, 3), spare=1), heads=2, queries=(1, 0, 3)))

    def attend(q, position_bias, time_bias):
        changed = replace(a, q=q, position_bias=position_bias, time_bias=time_bias)
        return changed.call(attention(implementation))[0]

    leaves = [x.requires_grad_() for x in (a.q, a.position_bias, a.time_bias)]
    assert torch.autograd.gradcheck(attend, leaves)


@every_implementation
def test_a_bias_of_minus_infinity_hides_a_distance(implementation):
    a = with_bias(arguments(Ragged("", (40, 3))), time=False)
    a.position_bias[:, 2:] = -torch.inf
    a.v[:38] = 1e30  # what the last query must not see
    out, _ = a.call(attention(implementation))
    assert out[39].abs().max() < 10


def test_buckets_are_halves_of_powers_of_2():
    edges = torch.tensor([1, 2, 3, 4, 6, 8, 12, 2**40, 3 * 2**39])
    assert time_buckets(edges).tolist() == [0, 2, 3, 4, 5, 6, 7, 80, 81]
    assert time_buckets(edges[:7] - 1).tolist() == [0, 0, 2, 3, 4, 5, 6]


def test_the_bucket_of_any_int64_is_in_the_table():
    extremes = torch.tensor([-(2**63), -1, 0, 2**63 - 1])
    assert time_buckets(extremes).tolist() == [0, 0, 0, 126]


@every_kernel
def test_differences_of_extreme_times_are_those_of_the_reference(implementation):
    a = with_bias(arguments(Ragged("", (6,))))
    extremes = torch.tensor([-(2**63), 2**63 - 1, 0, -1, 2**62, -(2**62)])
    a = replace(a, query_times=extremes, key_times=extremes.flip(0))
    assert_close(a.call(attention(implementation))[0], by_plain_loops(a)[0])


WRONG = [
    ("position_bias must have at least 17 columns", {"position_bias": torch.zeros(2, 16).double()}),
    ("position_bias must", {"position_bias": torch.zeros(1, 20).double()}),
    ("position_bias must", {"position_bias": torch.zeros(2, 20)}),
    ("time_bias must", {"time_bias": torch.zeros(2, 127).double()}),
    ("time_bias must", {"time_bias": torch.zeros(2, 128)}),
    ("given together", {"time_bias": None}),
    ("given together", {"query_times": None}),
    ("given together", {"key_times": None}),
    ("query_times must", {"query_times": torch.zeros(33).long()}),
    ("key_times must", {"key_times": torch.zeros(34)}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    with pytest.raises(ValueError, match=match):
        replace(with_bias(arguments()), **change).call(attention(implementation))


@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_a_sequence_longer_than_the_bias_reads_none_of_other_heads(implementation):
    """The host cannot know on CUDA that a sequence is longer than max_seqlen_k says."""
    a = with_bias(arguments(Ragged("", (9, 4))), time=False)
    short = replace(a, max_seqlen_k=4, position_bias=a.position_bias[:, :4])
    padded = replace(a, position_bias=a.position_bias.clone())
    padded.position_bias[:, 4:] = 0
    grad = torch.randn(a.q.shape, dtype=torch.float64)
    actual = gradients(short, attention(implementation), grad)
    exact = gradients(padded, attention(implementation), grad)
    assert_close(actual[0], exact[0])
    assert_close(actual[4], exact[4][:, :4])


@every_kernel
def test_on_cuda_a_head_of_more_than_128_is_a_value_error(implementation):
    a = with_bias(arguments(head_size=129, dtype=torch.float32))
    if implementation.is_cuda_kernel:
        with pytest.raises(ValueError, match=r"q must be in 1..128 with position_bias.*, got 129"):
            a.call(attention(implementation))
    else:
        assert_close(a.call(attention(implementation))[0], by_plain_loops(widened(a))[0])


@every_kernel
def test_opcheck(implementation):
    a = with_bias(arguments(dtype=torch.float32)).to(implementation.device)
    leaves = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in vars(a).values()
    ]
    op = getattr(torch.ops, implementation.namespace).causal_attention.default
    torch.library.opcheck(op, tuple(leaves))


@every_kernel
def test_gradients_repeat_bit_by_bit_with_any_number_of_threads(implementation):
    a = with_bias(arguments(Ragged("", (600, 100, 30)), 2, 20, dtype=torch.float32))
    op, grad = attention(implementation), torch.randn(a.q.shape)
    first = gradients(a, op, grad)
    torch.set_num_threads(1)
    second = gradients(a, op, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_padded_sequences_have_the_biases_of_packed_ones(backend):
    a = with_bias(arguments(Ragged("", (5, 2))))
    key_mask = torch.tensor([[True] * 5, [False, True, False, True, False]])

    def padded(x):
        return x.new_zeros(key_mask.shape + x.shape[1:]).masked_scatter(
            key_mask.view(key_mask.shape + (1,) * (x.dim() - 1)), x
        )

    out = padded_causal_attention(
        *(padded(x) for x in (a.q, a.k, a.v)),
        key_mask,
        a.scale,
        position_bias=a.position_bias,
        time_bias=a.time_bias,
        query_times=padded(a.query_times),
        key_times=padded(a.key_times),
        backend=backend,
    )
    assert_close(out[key_mask], by_plain_loops(a)[0])
