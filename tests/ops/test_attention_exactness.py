"""Output and gradients of `causal_attention` against the reference, for every type and around every tile."""

from dataclasses import replace

import pytest
import torch
from support.attention import (
    arguments,
    attention,
    converted,
    every_implementation,
    every_kernel,
    gradients,
    in_plain_pytorch,
)
from support.samples import RAGGED, Ragged
from support.tolerances import HALF_TYPES, LIMITS, assert_close, relative_error, tf32_matmul

from ssept_ext.ops import reference
from ssept_ext.ops.dropout import dropout_keep

# Lengths around the tiles of the kernels, and long enough for work on one sequence to be split.
LENGTHS = {
    "tile edges": Ragged("", (31, 32, 33, 64, 65, 1)),
    "chunk edges": Ragged("", (256, 257, 300)),
    "split over threads": Ragged("", (513, 700)),
}


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("heads_and_size", [(2, 5), (1, 50)], ids=str)
@pytest.mark.parametrize("ragged", [*RAGGED, *LENGTHS.values()], ids=lambda r: str(r.lengths))
@every_kernel
def test_output_and_gradients_match_the_reference(
    implementation, ragged, heads_and_size, dropout_p
):
    a = arguments(ragged, *heads_and_size)
    a = replace(a, dropout_p=dropout_p, seed=torch.tensor([-(3**39)]), site=2**31 + 5)
    grad = torch.randn(a.q.shape, dtype=torch.float64)
    actual = gradients(a, attention(implementation), grad)
    exact = gradients(a, reference.causal_attention, grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("queries", [(1, 1, 1), (40, 0, 33), (70, 34, 9)], ids=str)
@every_kernel
def test_gradients_of_fewer_queries_than_keys_match_the_reference(implementation, queries):
    a = arguments(Ragged("", (70, 33, 40)), queries=queries)
    a = replace(a, dropout_p=0.2, seed=torch.tensor([5]))
    grad = torch.randn(a.q.shape, dtype=torch.float64)
    actual = gradients(a, attention(implementation), grad)
    exact = gradients(a, reference.causal_attention, grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("head_size", [1, 7, 8, 50, 64, 100, 128, 129, 256])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype, head_size):
    a = arguments(Ragged("", (70, 5)), 1, head_size)
    a = converted(replace(a, scale=head_size**-0.5), dtype)
    grad = torch.randn(a.q.shape).to(dtype)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    plain = gradients(a, in_plain_pytorch(a), grad)
    actual = gradients(a, attention(implementation), grad)
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@pytest.mark.parametrize("head_size", [1, 7, 8, 50, 64, 100, 128, 129, 256])
@every_kernel
def test_tf32_is_as_exact_as_the_policy_asks_and_used_where_allowed_only(implementation, head_size):
    a = arguments(Ragged("", (70, 5)), 1, head_size)
    a = converted(replace(a, scale=head_size**-0.5, allow_tf32=True), torch.float32)
    grad = torch.randn(a.q.shape)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    plain = gradients(a, in_plain_pytorch(a, tf32_matmul), grad)
    actual = gradients(a, attention(implementation), grad)
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert_close(x, y, z, tf32=True)
        assert (relative_error(x, y) > LIMITS[torch.float32]) == implementation.is_cuda_kernel


# Around the tiles of 16 rows for each warp, and of 32 and 64 for a block.
TILES = Ragged("", (0, 1, 15, 16, 17, 33, 63, 64, 65, 130))


@pytest.mark.parametrize("head_size", [50, 100])
@pytest.mark.parametrize("dtype", ["tf32", *HALF_TYPES], ids=str)
@every_kernel
def test_tensor_cores_match_the_reference_around_tiles(implementation, dtype, head_size):
    tf32 = dtype == "tf32"
    a = replace(arguments(TILES, 1, head_size), scale=head_size**-0.5, allow_tf32=tf32)
    a = replace(a, dropout_p=0.4, seed=torch.tensor([-(3**39)]), site=2**31 + 5)
    a = converted(a, torch.float32 if tf32 else dtype)
    grad = torch.randn(a.q.shape).to(a.q.dtype)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    plain = gradients(a, in_plain_pytorch(a, tf32_matmul if tf32 else torch.matmul), grad)
    actual = gradients(a, attention(implementation), grad)
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert_close(x, y, z, tf32=tf32)


@pytest.mark.parametrize("dtype", ["tf32", torch.float64, torch.float32, *HALF_TYPES], ids=str)
@every_kernel
def test_dropout_drops_exactly_the_weights_of_the_reference(implementation, dtype):
    tokens, heads = 70, 2
    a = arguments(Ragged("", (tokens,)), heads, tokens, dtype=torch.float32)
    a = replace(a, scale=0.01, dropout_p=0.4, seed=torch.tensor([3**39]), site=7)
    a = converted(a, torch.float32) if dtype == "tf32" else converted(a, dtype)
    # Values, and gradients of the output, that are a basis: the weights themselves come out.
    basis = torch.eye(tokens, dtype=a.q.dtype)[:, None].expand(tokens, heads, tokens).contiguous()
    a = replace(a, v=basis, allow_tf32=dtype == "tf32")
    out, _, _, grad_v = gradients(a, attention(implementation), basis)
    rows = torch.arange(tokens)[:, None] * heads + torch.arange(heads)
    keep = dropout_keep(rows, tokens, a.dropout_p, a.seed, a.site)
    keep &= torch.ones(tokens, tokens).tril().bool()[:, None]
    assert torch.equal(out != 0, keep)
    assert torch.equal(grad_v.permute(2, 1, 0) != 0, keep)


@pytest.mark.parametrize("scale", [-0.7, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@every_kernel
def test_a_scale_need_not_be_positive(implementation, dtype, scale):
    a = converted(replace(arguments(), scale=scale), dtype)
    grad = torch.randn(a.q.shape).to(dtype)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    plain = gradients(a, in_plain_pytorch(a), grad)
    for x, y, z in zip(gradients(a, attention(implementation), grad), exact, plain, strict=True):
        assert_close(x, y, z)


@every_kernel
def test_many_short_sequences(implementation):
    a = arguments(Ragged("", (3, 0, 1, 2, 1) * 40), 1, 4, dtype=torch.float32)
    exact = converted(a, torch.float64).call(reference.causal_attention)
    for x, y in zip(a.call(attention(implementation)), exact, strict=True):
        assert_close(x, y)


@every_kernel
def test_the_newest_queries_of_4096_keys(implementation):
    a = arguments(Ragged("", (4096,)), 1, 2, queries=(70,), dtype=torch.float32)
    grad = torch.randn(a.q.shape)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    for x, y in zip(gradients(a, attention(implementation), grad), exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_implementation
def test_scores_far_from_zero_neither_overflow_nor_vanish(implementation, dtype):
    a = arguments(Ragged("", (40,)), 1, 4)
    a = converted(replace(a, scale=300.0), dtype)
    grad = torch.ones(a.q.shape, dtype=dtype)
    actual = gradients(a, attention(implementation), grad)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    assert all(torch.isfinite(x).all() for x in actual)
    # Rounding of scores in the hundreds is what float32 loses here.
    assert (actual[0] - exact[0]).abs().max() < {torch.float32: 1e-3, torch.float64: 1e-12}[dtype]
