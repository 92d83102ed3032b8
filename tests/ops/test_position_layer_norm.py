"""`position_layer_norm`, forward and backward, in every implementation."""

from dataclasses import dataclass, replace

import pytest
import torch
from support.implementations import ALL
from support.samples import (
    RAGGED,
    Ragged,
    amid_traps,
    ragged_id,
    senseless_offsets,
    with_offsets_amid_traps,
)
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext.ops import reference

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
either_way = pytest.mark.parametrize("by_position", [True, False], ids=["positions", "rows"])
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
SEQ_MAX_LEN = 20
RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 9, 2))


@dataclass(frozen=True)
class Arguments:
    x: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    eps: float = 1e-8

    def call(self, op):
        return op(*vars(self).values())

    def gradients(self, op, grad):
        """Output, and the gradients of x, gamma and beta."""
        leaves = {
            n: getattr(self, n).detach().clone().requires_grad_() for n in ("x", "gamma", "beta")
        }
        out = replace(self, **leaves).call(op)
        return out, *torch.autograd.grad(out, list(leaves.values()), grad)

    def to(self, device):
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def converted(self, dtype):
        return replace(self, **{n: getattr(self, n).to(dtype) for n in ("x", "gamma", "beta")})


def arguments(ragged=RAGGED_BATCH, width=10, dtype=torch.float64, by_position=True):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    n = ragged.num_tokens
    of_parameters = (SEQ_MAX_LEN, width) if by_position else (width,)
    return Arguments(
        x=normal(n, width) + 3,
        gamma=normal(*of_parameters),
        beta=normal(*of_parameters),
        positions=torch.randint(SEQ_MAX_LEN, (n,), generator=generator),
        cu_seqlens=ragged.cu_seqlens(),
    )


def in_plain_pytorch(x, gamma, beta, positions, cu_seqlens, eps):
    normal = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + eps).sqrt()
    if gamma.dim() == 1:
        return gamma * normal + beta
    return gamma[positions] * normal + beta[positions]


@pytest.mark.parametrize("width", [1, 10, 100, 300])
@either_way
@every_implementation
def test_features_are_normalised_then_scaled_and_shifted(implementation, by_position, width):
    a = arguments(width=width, by_position=by_position)
    out = a.to(implementation.device).call(implementation.op("position_layer_norm"))
    assert_close(out, a.call(in_plain_pytorch))


@pytest.mark.parametrize("ragged", [*RAGGED, Ragged("long", (3000,))], ids=ragged_id)
@either_way
@every_kernel
def test_output_and_gradients_match_the_reference(implementation, by_position, ragged):
    a = arguments(ragged, by_position=by_position)
    grad = torch.randn(a.x.shape, dtype=torch.float64)
    device = implementation.device
    actual = a.to(device).gradients(implementation.op("position_layer_norm"), grad.to(device))
    exact = a.gradients(reference.position_layer_norm, grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


# Rows by 1, 2 and 4 elements at a time, and wider than a warp's one look.
@pytest.mark.parametrize("width", [13, 50, 100, 300])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@either_way
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, by_position, dtype, width):
    a = arguments(width=width, by_position=by_position).converted(dtype)
    grad = torch.randn(a.x.shape).to(dtype)
    exact = a.converted(torch.float64).gradients(reference.position_layer_norm, grad.double())
    plain = a.gradients(in_plain_pytorch, grad)
    device = implementation.device
    actual = a.to(device).gradients(implementation.op("position_layer_norm"), grad.to(device))
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@every_implementation
def test_positions_are_not_read_for_one_gamma_and_beta(implementation):
    a = arguments(by_position=False).to(implementation.device)
    op = implementation.op("position_layer_norm")
    expected = a.call(op)

    a.positions.fill_(10**9)

    assert torch.equal(a.call(op), expected)
    if implementation.is_cuda_kernel:
        implementation.raise_pending_errors()


@every_implementation
def test_a_constant_token_becomes_beta(implementation):
    a = arguments().to(implementation.device)
    a.x[3] = 7.0
    out = a.call(implementation.op("position_layer_norm"))
    assert torch.equal(out[3], a.beta[a.positions[3]])


@senseless_offsets
@either_way
@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_senseless_offsets_are_not_followed_out_of_the_tensors(
    implementation, by_position, offsets
):
    a = arguments(by_position=by_position)
    tensors = {n: x.to(implementation.device) for n, x in vars(a).items() if n != "eps"}
    a = with_offsets_amid_traps(replace(a, **tensors), offsets)
    out = a.call(implementation.op("position_layer_norm"))
    backward = implementation.op("position_layer_norm_backward")
    for x in (out, *backward(amid_traps(torch.ones_like(out)), *vars(a).values())):
        assert torch.isfinite(x).all()
    implementation.raise_pending_errors()


@either_way
@every_implementation
def test_gradcheck(implementation, by_position):
    small = Ragged("small", (2, 0, 3), spare=1)
    a = arguments(small, width=4, by_position=by_position).to(implementation.device)

    def norm(x, gamma, beta):
        op = implementation.op("position_layer_norm")
        return replace(a, x=x, gamma=gamma, beta=beta).call(op)

    leaves = [t.requires_grad_() for t in (a.x, a.gamma, a.beta)]
    assert torch.autograd.gradcheck(norm, leaves)


@either_way
@every_implementation
def test_spare_capacity_is_not_read_and_is_written_as_zeros(implementation, by_position):
    a = arguments(Ragged("spare", (3, 2), spare=2), by_position=by_position)
    a = a.to(implementation.device)
    a.x[5:] = torch.nan
    a.positions[5:] = -1
    grad = torch.ones_like(a.x)
    grad[5:] = torch.nan
    out, *gradients = a.gradients(implementation.op("position_layer_norm"), grad)
    assert (out[5:] == 0).all()
    assert (gradients[0][5:] == 0).all()
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("position", [-1, SEQ_MAX_LEN])
@every_implementation
def test_a_position_outside_the_table_is_an_index_error_that_names_it(implementation, position):
    a = arguments().to(implementation.device)
    a.positions[2] = position
    op = implementation.op("position_layer_norm")
    match = f"positions has id {position}, outside its table of {SEQ_MAX_LEN} rows"
    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError, match=match):
            a.call(op)
        return
    with_bad = a.gradients(op, torch.ones_like(a.x))  # counts as 0
    with pytest.raises(IndexError, match=match):
        implementation.raise_pending_errors()
    a.positions[2] = 0
    with_zero = a.gradients(op, torch.ones_like(a.x))
    assert all(torch.equal(x, y) for x, y in zip(with_bad, with_zero, strict=True))


@either_way
@every_kernel
def test_opcheck(implementation, by_position):
    a = arguments(dtype=torch.float32, by_position=by_position).to(implementation.device)
    leaves = [t.requires_grad_() for t in (a.x, a.gamma, a.beta)]
    op = getattr(torch.ops, implementation.namespace).position_layer_norm.default
    torch.library.opcheck(op, (*leaves, a.positions, a.cu_seqlens, a.eps))


@either_way
@every_kernel
def test_gradients_are_the_same_bits_every_time(implementation, by_position):
    a = arguments(Ragged("long", (3000, 1000)), 100, torch.float32, by_position)
    a = a.to(implementation.device)
    grad = torch.randn(a.x.shape).to(implementation.device)
    op = implementation.op("position_layer_norm")
    first = a.gradients(op, grad)
    torch.set_num_threads(1)
    second = a.gradients(op, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


WRONG = [
    ("x must have 2 dimensions", lambda a: {"x": a.x[0]}),
    ("gamma must have", lambda a: {"gamma": a.gamma[:, 1:]}),
    ("gamma must have", lambda a: {"gamma": a.gamma[None]}),
    ("gamma must have", lambda a: {"gamma": a.gamma[0, 1:]}),
    ("beta must have", lambda a: {"beta": a.beta[1:]}),
    ("beta must have", lambda a: {"gamma": a.gamma[0]}),
    ("positions must have", lambda a: {"positions": a.positions[1:]}),
    ("positions must be (int64|Long)", lambda a: {"positions": a.positions.int()}),
    ("gamma.*[fF]loat", lambda a: {"gamma": a.gamma.float()}),
    ("cu_seqlens must be [iI]nt", lambda a: {"cu_seqlens": a.cu_seqlens.long()}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    a = arguments().to(implementation.device)
    with pytest.raises(ValueError, match=match):
        replace(a, **change(a)).call(implementation.op("position_layer_norm"))
