"""`causal_attention`, forward and backward, in every implementation."""

from dataclasses import dataclass, replace

import pytest
import torch
from implementations import ALL
from samples import RAGGED, Ragged, ragged_id
from tolerances import HALF_TYPES, assert_close

from ssept_ext import ops, reference
from ssept_ext.reference import dropout_keep

every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)

RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 9, 2))


@dataclass(frozen=True)
class Arguments:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    dropout_p: float = 0.0
    seed: torch.Tensor | None = None
    site: int = 0

    def call(self, op):
        return op(*vars(self).values())


def arguments(ragged=RAGGED_BATCH, heads=2, head_size=5, queries=None, dtype=torch.float64):
    """Self-attention, or with `queries` the given number of newest queries for each sequence."""
    generator = torch.Generator().manual_seed(1)
    ragged_q = ragged if queries is None else Ragged("", queries)

    def normal(n):
        shape = (n, heads, head_size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return Arguments(
        q=normal(ragged_q.num_tokens),
        k=normal(ragged.num_tokens),
        v=normal(ragged.num_tokens),
        cu_seqlens_q=ragged_q.cu_seqlens(),
        cu_seqlens_k=ragged.cu_seqlens(),
        max_seqlen_q=ragged_q.max_seqlen,
        max_seqlen_k=ragged.max_seqlen,
        scale=0.4,
    )


def by_plain_loops(a):
    """Token by token, from the definition; dropout by asking for each weight."""
    out = torch.zeros_like(a.q)
    lse = torch.zeros(a.q.shape[:2], dtype=a.q.dtype)
    heads = a.q.shape[1]
    for b in range(len(a.cu_seqlens_q) - 1):
        q0, q1 = a.cu_seqlens_q[b : b + 2].tolist()
        k0, k1 = a.cu_seqlens_k[b : b + 2].tolist()
        for i in range(q0, q1):
            seen = (k1 - k0) - (q1 - i) + 1  # the newest query sees every key
            if seen <= 0:
                lse[i] = -torch.inf
                continue
            for h in range(heads):
                scores = a.k[k0 : k0 + seen, h] @ a.q[i, h] * a.scale
                lse[i, h] = scores.logsumexp(0)
                weights = scores.softmax(0)
                if a.dropout_p > 0:
                    row = torch.tensor(i * heads + h)
                    keep = dropout_keep(row, seen, a.dropout_p, a.seed, a.site)
                    weights = weights * keep / (1 - a.dropout_p)
                out[i, h] = weights @ a.v[k0 : k0 + seen, h]
    return out, lse


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize(("heads", "head_size"), [(1, 50), (2, 5), (3, 8), (1, 1)])
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_each_query_takes_the_softmax_mean_of_what_it_sees(
    implementation, ragged, heads, head_size, dropout_p
):
    a = arguments(ragged, heads, head_size)
    a = replace(a, dropout_p=dropout_p, seed=torch.tensor([3**39]), site=4)
    out, lse = a.call(implementation.op("causal_attention"))
    exact_out, exact_lse = by_plain_loops(a)
    assert_close(out, exact_out)
    assert_close(lse, exact_lse)


@every_implementation
def test_fewer_queries_than_keys_are_the_newest(implementation):
    a = arguments(queries=(1, 1, 3, 0, 2))
    out, lse = a.call(implementation.op("causal_attention"))
    exact_out, exact_lse = by_plain_loops(a)
    assert_close(out, exact_out)
    assert_close(lse, exact_lse)


@every_implementation
def test_a_query_that_sees_no_key_gives_zeros_and_no_gradient(implementation):
    a = arguments(Ragged("", (0, 1)), queries=(1, 3))
    leaves = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    out, lse = a.call(implementation.op("causal_attention"))
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert (out[:3] == 0).all()
    assert lse[:3].isneginf().all()
    assert all(torch.isfinite(g).all() for g in gradients)
    assert (gradients[0][:3] == 0).all()


@every_implementation
def test_gradcheck_with_dropout(implementation):
    a = arguments(Ragged("small", (2, 0, 3), spare=1), queries=(1, 0, 3))

    def attend(q, k, v):
        changed = replace(a, q=q, k=k, v=v, dropout_p=0.3, seed=torch.tensor([9]))
        return changed.call(implementation.op("causal_attention"))[0]

    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in (a.q, a.k, a.v)])


@every_implementation
def test_spare_capacity_is_not_read_and_is_written_as_zeros(implementation):
    a = arguments(Ragged("spare", (4, 3), spare=2))
    for x in (a.q, a.k, a.v):
        x[7:] = torch.nan
    leaves = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    out, lse = a.call(implementation.op("causal_attention"))
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert torch.isfinite(out).all()
    for spare in (out[7:], lse[7:], *(g[7:] for g in gradients)):
        assert (spare == 0).all()


WRONG = [
    ("k must have", lambda a: {"k": a.k[:, :1]}),
    ("v must have", lambda a: {"v": a.v[1:]}),
    ("q must have 3 dimensions", lambda a: {"q": a.q[0]}),
    ("k.*[fF]loat", lambda a: {"k": a.k.float()}),
    ("cu_seqlens_k must have", lambda a: {"cu_seqlens_k": a.cu_seqlens_k[:-1]}),
    ("dropout_p must be in", lambda a: {"dropout_p": 1.0}),
    ("seed must be", lambda a: {"dropout_p": 0.5}),
    ("head size of q must be in 1..256, got 257", lambda a: vars(arguments(head_size=257))),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    with pytest.raises(ValueError, match=match):
        replace(arguments(), **change(arguments())).call(implementation.op("causal_attention"))


@every_implementation
def test_a_longer_sequence_than_max_seqlen_is_a_value_error_or_on_cuda_still_right(implementation):
    a, op = arguments(Ragged("", (200, 5))), implementation.op("causal_attention")
    short = replace(a, max_seqlen_q=16, max_seqlen_k=16)
    if implementation.is_cuda_kernel:  # cannot know without waiting for the device
        grad = torch.randn(a.q.shape, dtype=torch.float64)
        for x, y in zip(gradients(short, op, grad), gradients(a, op, grad), strict=True):
            assert torch.equal(x, y)
    else:
        with pytest.raises(ValueError, match="max_seqlen.* is 16, but a sequence has 200"):
            short.call(op)


def gradients(a, op, grad):
    """Output, and the gradients of q, k and v."""
    leaves = {n: getattr(a, n).detach().clone().requires_grad_() for n in ("q", "k", "v")}
    out, _ = replace(a, **leaves).call(op)
    return out, *torch.autograd.grad(out, list(leaves.values()), grad)


def in_plain_pytorch(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, *_):
    """Sequence by sequence, as one would write it without thinking of precision."""
    outputs = [q[:0]]
    lengths = zip(cu_seqlens_k.tolist()[:-1], cu_seqlens_k.tolist()[1:], strict=True)
    for begin, end in lengths:
        scores = torch.einsum("ihd,jhd->hij", q[begin:end], k[begin:end]) * scale
        future = torch.ones(end - begin, end - begin).triu(1).bool()
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, v[begin:end]))
    return torch.cat(outputs), None


def converted(a, dtype):
    return replace(a, q=a.q.to(dtype), k=a.k.to(dtype), v=a.v.to(dtype))


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
    actual = gradients(a, implementation.op("causal_attention"), grad)
    exact = gradients(a, reference.causal_attention, grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("queries", [(1, 1, 1), (40, 0, 33), (70, 34, 9)], ids=str)
@every_kernel
def test_gradients_of_fewer_queries_than_keys_match_the_reference(implementation, queries):
    a = arguments(Ragged("", (70, 33, 40)), queries=queries)
    a = replace(a, dropout_p=0.2, seed=torch.tensor([5]))
    grad = torch.randn(a.q.shape, dtype=torch.float64)
    actual = gradients(a, implementation.op("causal_attention"), grad)
    exact = gradients(a, reference.causal_attention, grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("head_size", [8, 50, 100, 256])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype, head_size):
    a = arguments(Ragged("", (70, 5)), 1, head_size)
    a = converted(replace(a, scale=head_size**-0.5), dtype)
    grad = torch.randn(a.q.shape).to(dtype)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    plain = gradients(a, in_plain_pytorch, grad)
    actual = gradients(a, implementation.op("causal_attention"), grad)
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_implementation
def test_scores_far_from_zero_neither_overflow_nor_vanish(implementation, dtype):
    a = arguments(Ragged("", (40,)), 1, 4)
    a = converted(replace(a, scale=300.0), dtype)
    grad = torch.ones(a.q.shape, dtype=dtype)
    actual = gradients(a, implementation.op("causal_attention"), grad)
    exact = gradients(converted(a, torch.float64), reference.causal_attention, grad.double())
    assert all(torch.isfinite(x).all() for x in actual)
    # Rounding of scores in the hundreds is what float32 loses here.
    assert (actual[0] - exact[0]).abs().max() < {torch.float32: 1e-3, torch.float64: 1e-12}[dtype]


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    a = arguments()
    op = implementation.op("causal_attention")
    strided = {
        k: torch.stack([v, torch.zeros_like(v)], -1)[..., 0]
        for k, v in vars(a).items()
        if isinstance(v, torch.Tensor)
    }
    assert torch.equal(replace(a, **strided).call(op)[0], a.call(op)[0])


@every_kernel
def test_opcheck(implementation):
    a = replace(arguments(dtype=torch.float32), dropout_p=0.3, seed=torch.tensor([4]))
    leaves = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in vars(a).values()
    ]
    op = getattr(torch.ops, implementation.namespace).causal_attention.default
    torch.library.opcheck(op, tuple(leaves))


@every_kernel
def test_results_do_not_depend_on_the_number_of_threads(implementation):
    a = arguments(Ragged("", (600, 100, 30)), 2, 20, dtype=torch.float32)
    a = replace(a, dropout_p=0.3, seed=torch.tensor([4]))
    op = implementation.op("causal_attention")
    grad = torch.randn(a.q.shape)
    first = gradients(a, op, grad)
    torch.set_num_threads(1)
    second = gradients(a, op, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_compiling_for_changing_lengths_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.causal_attention, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 3), (4, 9), (1, 12), (7, 7), (2, 30)]:
        a = arguments(Ragged("", lengths))
        assert_close(compiled(*vars(a).values())[0], by_plain_loops(a)[0])
    assert counter.frame_count <= 2


def test_the_padded_face_attends_over_unmasked_keys_only():
    q, k, v = torch.randn(3, 2, 7, 2, 5, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
    out = ops.padded_causal_attention(q, k, v, mask, 0.4)
    visible = mask[:, None, None, :] & torch.ones(7, 7).tril().bool()
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=visible, scale=0.4
    ).transpose(1, 2)
    assert_close(out[mask], expected[mask])
    assert (out[~mask] == 0).all()
    grad = torch.randn_like(out) * mask[..., None, None]
    for x, y in zip(
        *(torch.autograd.grad(o, (q, k, v), grad) for o in (out, expected)), strict=True
    ):
        assert_close(x, y)


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        ("key_mask must be bool of shape", {"key_mask": torch.ones(1, 3)}),
        ("key_mask must be bool of shape", {"key_mask": torch.ones(1, 4).bool()}),
        ("v must have shape", {"v": torch.ones(1, 3, 1, 3)}),
    ],
)
def test_a_wrong_argument_of_the_padded_face_is_a_value_error(match, changes):
    arguments = {n: torch.ones(1, 3, 1, 2) for n in "qkv"} | {"key_mask": torch.ones(1, 3).bool()}
    with pytest.raises(ValueError, match=match):
        ops.padded_causal_attention(**arguments | changes, scale=1.0)
