"""`multi_head_attention`, forward and backward, in every implementation."""

from dataclasses import dataclass, replace
from itertools import chain

import pytest
import torch
from support.attention import every_implementation, every_kernel
from support.samples import RAGGED, Ragged, outputs_and_gradients, ragged_id
from support.tolerances import HALF_TYPES, assert_close
from torch.nn import functional as F

from ssept_ext import ops
from ssept_ext.ops import reference

RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 70, 2))
PARAMETERS = [f"{of}_{kind}" for of in "qkv" for kind in ("weight", "bias")]
K_BIAS = PARAMETERS.index("k_bias")


@dataclass(frozen=True)
class Arguments:
    x_q: torch.Tensor
    x_k: torch.Tensor
    q_weight: torch.Tensor
    q_bias: torch.Tensor
    k_weight: torch.Tensor
    k_bias: torch.Tensor
    v_weight: torch.Tensor
    v_bias: torch.Tensor
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    num_heads: int
    scale: float = 0.4
    dropout_p: float = 0.0
    seed: torch.Tensor | None = None
    site: int = 0
    residual: bool = True

    def to(self, device=None, dtype=None):
        """On a device, and with hidden states and parameters of a type."""

        def moved(x):
            return x.to(device, dtype if x.is_floating_point() else None)

        tensors = {n: x for n, x in vars(self).items() if isinstance(x, torch.Tensor)}
        return replace(self, **{n: moved(x) for n, x in tensors.items()})


def arguments(ragged=RAGGED_BATCH, heads=2, head_size=5, queries=None, **changes):
    """Self-attention, or with `queries` the given number of newest queries for each sequence."""
    generator = torch.Generator().manual_seed(1)
    ragged_q = ragged if queries is None else Ragged("", queries)
    width = heads * head_size

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    given = Arguments(
        normal(ragged_q.num_tokens, width),
        normal(ragged.num_tokens, width),
        *chain(*((normal(width, width) / width**0.5, normal(width)) for _ in "qkv")),
        ragged_q.cu_seqlens(),
        ragged.cu_seqlens(),
        ragged_q.max_seqlen,
        ragged.max_seqlen,
        heads,
    )
    return replace(given, **changes)


def results(a, op, grad, device="cpu"):
    """Output, and the gradients of hidden states and parameters."""
    moved = list(vars(a.to(device)).values())
    out, *others = outputs_and_gradients(lambda *x: op(*x)[0], moved, grad.to(device))
    return [x.cpu() for x in (out, *others)]


def in_parts(attention, linear=F.linear):
    """The op as three linear layers, an attention and, with a residual, a sum."""

    def op(x_q, x_k, *rest):
        parameters, offsets_and_lengths = rest[:6], rest[6:10]
        heads, *settings, residual = rest[10:]
        inputs = zip((x_q, x_k, x_k), parameters[::2], parameters[1::2], strict=True)
        head_size = x_q.shape[1] // heads
        qkv = (linear(x, w, b).view(-1, heads, head_size) for x, w, b in inputs)
        attended = attention(*qkv, *offsets_and_lengths, *settings)[0].flatten(1)
        return attended + x_q if residual else attended, None

    return op


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize(("heads", "head_size"), [(1, 50), (3, 8)])
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_it_is_attention_of_three_projections_plus_the_queries_input(
    implementation, ragged, heads, head_size, dropout_p
):
    a = arguments(ragged, heads, head_size)
    a = replace(a, dropout_p=dropout_p, seed=torch.tensor([3**39]), site=4)
    a.x_q[sum(ragged.lengths) :] = 0  # as layers leave tail padding
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")

    actual = results(a, op, grad, implementation.device)

    exact = results(a, in_parts(reference.causal_attention), grad)
    exact[1][sum(ragged.lengths) :] = 0
    for i, (x, y) in enumerate(zip(actual, exact, strict=True)):
        assert_close(x, torch.zeros_like(y) if i == 3 + K_BIAS else y)


@every_implementation
def test_fewer_queries_than_keys_are_the_newest(implementation):
    a = arguments(queries=(1, 1, 3, 0, 2), dropout_p=0.3, seed=torch.tensor([9]))
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")
    exact = results(a, in_parts(reference.causal_attention), grad)
    exact[3 + K_BIAS].zero_()
    for x, y in zip(results(a, op, grad, implementation.device), exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_without_a_residual_it_is_attention_of_the_projections(implementation, dtype):
    a = arguments(Ragged("", (5, 0, 17, 2), spare=3), residual=False)
    a = replace(a, dropout_p=0.3, seed=torch.tensor([9])).to(dtype=dtype)
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")

    actual = results(a, op, grad, implementation.device)

    plain = results(a, in_parts(reference.causal_attention), grad)
    exact = results(a.to(dtype=torch.float64), in_parts(reference.causal_attention), grad.double())
    for i, (x, y, z) in enumerate(zip(actual, exact, plain, strict=True)):
        if i != 3 + K_BIAS:
            assert_close(x, y, z)


@every_implementation
def test_a_query_that_sees_no_key_keeps_its_input(implementation):
    a = arguments(Ragged("", (0, 1)), queries=(1, 3))
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")
    out, grad_x_q, *_ = results(a, op, grad, implementation.device)
    assert_close(out[:3], a.x_q[:3])
    assert_close(grad_x_q[:3], grad[:3])


@every_implementation
def test_tail_padding_becomes_zeros_and_moves_no_gradient(implementation):
    spare = arguments(Ragged("", (4, 3), spare=2), dropout_p=0.3, seed=torch.tensor([9]))
    exact = arguments(Ragged("", (4, 3)), dropout_p=0.3, seed=torch.tensor([9]))
    exact = replace(exact, **{n: getattr(spare, n) for n in PARAMETERS})
    exact = replace(exact, x_q=spare.x_q[:7], x_k=spare.x_k[:7])
    grad = torch.randn_like(spare.x_q)
    op = implementation.op("multi_head_attention")

    out, grad_x_q, grad_x_k, *of_parameters = results(spare, op, grad, implementation.device)

    expected = results(exact, op, grad[:7], implementation.device)
    for x, y in zip((out, grad_x_q, grad_x_k), expected[:3], strict=True):
        assert_close(x, F.pad(y, (0, 0, 0, 2)))
    for x, y in zip(of_parameters, expected[3:], strict=True):
        assert_close(x, torch.where(y.abs() < 1e-14, 0, y))


@every_implementation
def test_gradcheck_with_dropout(implementation):
    a = arguments(Ragged("small", (2, 0, 3)), 2, 2, queries=(1, 0, 3))
    a = replace(a, dropout_p=0.3, seed=torch.tensor([9])).to(implementation.device)
    names = ["x_q", "x_k", *PARAMETERS]
    op = implementation.op("multi_head_attention")

    def attend(*leaves):
        return op(*vars(replace(a, **dict(zip(names, leaves, strict=True)))).values())[0]

    leaves = [getattr(a, name).requires_grad_() for name in names]
    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("parameters", ["same", "float32"])
@pytest.mark.parametrize("head_size", [20, 100])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype, head_size, parameters):
    a = arguments(Ragged("", (70, 33, 0, 1)), 2, head_size, scale=head_size**-0.5).to(dtype=dtype)
    if parameters == "float32":
        a = replace(a, **{n: getattr(a, n).float() for n in PARAMETERS})
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")

    actual = results(a, op, grad, implementation.device)

    def rounded_linear(x, w, b):
        return F.linear(x, w.to(dtype), b.to(dtype))

    exact = results(a.to(dtype=torch.float64), in_parts(reference.causal_attention), grad.double())
    plain = results(a, in_parts(reference.causal_attention, rounded_linear), grad)
    given = [x for x in vars(a).values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    for i, (x, y, z) in enumerate(zip(actual, exact, plain, strict=True)):
        assert x.dtype == (dtype if i == 0 else given[i - 1].dtype)
        if i != 3 + K_BIAS:
            assert_close(
                x, y, z, tf32=dtype in HALF_TYPES
            )  # float32 gradients are of half products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("heads", "head_size"), [(1, 1), (1, 33), (1, 50), (1, 100), (2, 75)])
@every_kernel
def test_a_token_that_is_not_finite_leaves_the_others_alone(
    implementation, heads, head_size, dtype
):
    a = arguments(Ragged("", (1,) * 21), heads, head_size).to(dtype=dtype)
    grad = torch.randn_like(a.x_q)
    given = [a.x_q, a.x_k, grad]
    bad = [x.clone() for x in given]
    rows = [3, 8, 14]
    for x, row, value in zip(bad, rows, (torch.nan, torch.inf, torch.nan), strict=True):
        x[row] = value
    op = implementation.op("multi_head_attention")

    def of_tokens(x_q, x_k, grad):
        return results(replace(a, x_q=x_q, x_k=x_k), op, grad, implementation.device)[:3]

    others = torch.tensor([n not in rows for n in range(21)])
    for x, y in zip(of_tokens(*bad), of_tokens(*given), strict=True):
        assert not x[~others].isfinite().all()
        assert torch.equal(x[others], y[others])


@every_kernel
def test_the_keys_bias_changes_nothing(implementation):
    a = arguments()
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")
    moved = replace(a, k_bias=a.k_bias + 5)
    for x, y in zip(
        *(results(b, op, grad, implementation.device) for b in (a, moved)), strict=True
    ):
        assert torch.equal(x, y)


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    a = arguments()
    op = implementation.op("multi_head_attention")
    strided = {
        n: torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
        for n, x in vars(a).items()
        if isinstance(x, torch.Tensor)
    }
    grad = torch.randn_like(a.x_q)
    of_strided = results(
        replace(a, **strided), op, grad.t().contiguous().t(), implementation.device
    )
    for x, y in zip(of_strided, results(a, op, grad, implementation.device), strict=True):
        assert torch.equal(x, y)


@every_kernel
def test_autocast_does_not_round_what_the_op_was_given_in_float32(implementation):
    """As in a backward that runs under autocast, after a forward that did not."""
    a = arguments().to(dtype=torch.float32)
    op = implementation.op("multi_head_attention")
    grad = torch.randn_like(a.x_q)
    exact = results(a, op, grad, implementation.device)
    with torch.autocast(implementation.device, torch.bfloat16):
        actual = results(a, op, grad, implementation.device)
    for x, y in zip(actual, exact, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_under_autocast_hidden_states_are_of_its_type_and_gradients_of_the_parameters(backend):
    a = arguments().to(dtype=torch.float32)
    leaves = {n: getattr(a, n).requires_grad_() for n in ("x_q", "x_k", *PARAMETERS)}
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.multi_head_attention(*vars(a).values(), backend=backend)
    gradients = torch.autograd.grad(out.sum(), list(leaves.values()))
    assert out.dtype == torch.bfloat16
    assert {g.dtype for g in gradients} == {torch.float32}


@pytest.mark.parametrize("residual", [True, False])
@every_kernel
def test_opcheck(implementation, residual):
    a = arguments(dropout_p=0.3, seed=torch.tensor([4]), residual=residual)
    a = a.to(implementation.device, torch.float32)
    leaves = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in vars(a).values()
    ]
    op = getattr(torch.ops, implementation.namespace).multi_head_attention.default
    torch.library.opcheck(op, tuple(leaves))


def test_compiling_for_changing_lengths_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        ops.multi_head_attention, backend=counter, fullgraph=True, dynamic=True
    )
    for lengths in [(5, 3), (4, 9), (1, 12), (7, 7), (2, 30)]:
        a = arguments(Ragged("", lengths))
        (exact,) = reference.multi_head_attention(*vars(a).values())
        assert_close(compiled(*vars(a).values()), exact)
    assert counter.frame_count <= 2


@every_kernel
def test_results_repeat_bit_by_bit_with_any_number_of_threads(implementation):
    a = arguments(Ragged("", (600, 100, 30)), 2, 20, dropout_p=0.3, seed=torch.tensor([4]))
    a = a.to(dtype=torch.float32)
    op = implementation.op("multi_head_attention")
    grad = torch.randn_like(a.x_q)
    first = results(a, op, grad, implementation.device)
    again = results(a, op, grad, implementation.device)
    torch.set_num_threads(1)
    second = results(a, op, grad, implementation.device)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    # torch's products, which CUDA kernels use, may depend on the number of threads.
    sums = slice(None) if implementation.name == "native" else slice(4, None, 2)
    assert all(torch.equal(x, y) for x, y in zip(first[sums], second[sums], strict=True))


WRONG = [
    ("x_q must have 2 dimensions", lambda a: {"x_q": a.x_q[0]}),
    ("x_k must have", lambda a: {"x_k": a.x_k[:, :4]}),
    ("x_k.*[fF]loat", lambda a: {"x_k": a.x_k.float()}),
    ("k_weight must have", lambda a: {"k_weight": a.k_weight[1:]}),
    ("k_bias must have", lambda a: {"k_bias": a.k_bias[1:]}),
    ("v_bias must be .* or [fF]loat", lambda a: {"v_bias": a.v_bias.half()}),
    ("num_heads must divide the width of x_q, 10, got 3", lambda a: {"num_heads": 3}),
    ("num_heads must divide the width of x_q, 10, got 0", lambda a: {"num_heads": 0}),
    ("num_heads must divide the width of x_q, 10, got -5", lambda a: {"num_heads": -5}),
    ("cu_seqlens_k must have", lambda a: {"cu_seqlens_k": a.cu_seqlens_k[:-1]}),
    ("dropout_p must be in", lambda a: {"dropout_p": 1.0}),
    ("seed must be", lambda a: {"dropout_p": 0.5}),
    ("head size of q must be in 1..256, got 257", lambda a: vars(arguments(head_size=257))),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    a = replace(arguments(), **change(arguments())).to(implementation.device)
    with pytest.raises(ValueError, match=match):
        implementation.op("multi_head_attention")(*vars(a).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_kernel
def test_gradients_of_weights_over_many_rows_match_the_reference(implementation, dtype):
    a = arguments(Ragged("", (32,) * 127, spare=32), heads=1, head_size=6).to(dtype=dtype)
    grad = torch.randn_like(a.x_q)
    op = implementation.op("multi_head_attention")

    actual = results(a, op, grad, implementation.device)

    exact = results(a.to(dtype=torch.float64), reference.multi_head_attention, grad.double())
    in_type = results(a, reference.multi_head_attention, grad)
    names = ["out", "x_q", "x_k", *PARAMETERS]
    for name, x, y, z in zip(names, actual, exact, in_type, strict=True):
        if name != "k_bias":  # it is zero, and rounding in others
            assert_close(x, y, z)
