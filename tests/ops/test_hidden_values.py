"""What attention's mask hides never reaches a result, not even by 0 · NaN."""

import math
from itertools import product

import pytest
import torch
from support.implementations import ALL

from ssept_ext.ops import causal_attention

OP = torch.ops.ssept_ext.causal_attention
BACKWARD = torch.ops.ssept_ext.causal_attention_backward
NOT_FINITE = [math.nan, math.inf, -math.inf]


def results(q, k, v, grad):
    """Output, lse and the gradients of q, k and v."""
    tokens = len(q)
    offsets = torch.tensor([0, tokens], dtype=torch.int32)
    numbers = (tokens, tokens, 0.4)
    out, lse = OP(q, k, v, offsets, offsets, *numbers)
    gradients = BACKWARD(grad, q, k, v, out, lse, offsets, offsets, *numbers, 0.0, None, 0, False)
    return out, lse, *gradients[:3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [5, 70, 600])  # less than a tile, several, more than one unit
def test_a_value_that_is_not_finite_reaches_only_those_who_see_it(tokens, dtype):
    inputs = torch.randn(4, tokens, 2, 10).to(dtype)
    exact = results(*inputs)
    for at, value, changed in product({1, tokens // 2, tokens - 1}, NOT_FINITE, range(4)):
        broken = inputs.clone()
        broken[changed, at, 0, 3] = value

        actual = results(*broken)

        of_queries, of_keys = slice(0, 3), slice(3, 5)  # q's gradient; k's and v's
        for x, y in zip(actual, exact, strict=True):
            assert torch.equal(x[:, 1], y[:, 1]), "another head"
        for x, y in zip(actual[of_queries], exact[of_queries], strict=True):
            assert torch.equal(x[:at], y[:at]), "earlier queries"
        is_query = changed in (0, 3)
        for x, y in zip(actual[of_queries], exact[of_queries], strict=True):
            assert not is_query or torch.equal(x[at + 1 :], y[at + 1 :]), "other queries"
        for x, y in zip(actual[of_keys], exact[of_keys], strict=True):
            assert not is_query or torch.equal(x[at + 1 :], y[at + 1 :]), "keys it does not see"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_query_whose_scores_are_all_minus_infinity_attends_to_nothing(backend):
    q, k, v = torch.ones(3, 4, 1, 2)
    q[2] = -math.inf
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    q.requires_grad_()

    out, lse = causal_attention(q, k, v, offsets, offsets, 4, 4, 1.0, backend=backend)

    assert torch.equal(out[:, 0, 0], torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert lse[2] == -math.inf


@pytest.mark.parametrize("implementation", ALL, indirect=True)
def test_a_score_that_is_nan_reaches_its_query_even_if_dropout_drops_its_weight(implementation):
    q, k, v = torch.randn(3, 40, 1, 6).to(implementation.device)
    k[20] = math.nan
    offsets = torch.tensor([0, 40], dtype=torch.int32, device=q.device)
    seed = torch.tensor([3], device=q.device)

    op = implementation.op("causal_attention")
    out, _ = op(q, k, v, offsets, offsets, 40, 40, 0.4, 0.5, seed, 0)

    assert torch.isfinite(out[:20]).all()
    assert out[20:].isnan().all()
