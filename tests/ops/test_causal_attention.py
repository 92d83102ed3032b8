"""`causal_attention`, forward and backward, in every implementation."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from support.implementations import ALL
from support.samples import RAGGED, Ragged, amid_traps, ragged_id, senseless_offsets
from support.tolerances import HALF_TYPES, LIMITS, assert_close, relative_error, tf32_matmul
from torch.utils._python_dispatch import TorchDispatchMode

from ssept_ext import ops
from ssept_ext.ops import reference
from ssept_ext.ops.reference import dropout_keep

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
    allow_tf32: bool = False

    def call(self, op):
        return op(*vars(self).values())

    def call_public(self, op):
        """`ops.causal_attention` decides on TF32 by itself."""
        return op(*list(vars(self).values())[:-1])

    def to(self, device):
        moved = {n: x.to(device) for n, x in vars(self).items() if isinstance(x, torch.Tensor)}
        return replace(self, **moved)


def attention(implementation):
    """The op, for tensors on the CPU: they go to the implementation's device and come back."""

    def call(*args):
        moved = [x.to(implementation.device) if isinstance(x, torch.Tensor) else x for x in args]
        out, lse = implementation.op("causal_attention")(*moved)
        return out.cpu(), lse.cpu()

    return call


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
    out, lse = a.call(attention(implementation))
    exact_out, exact_lse = by_plain_loops(a)
    assert_close(out, exact_out)
    assert_close(lse, exact_lse)


@every_implementation
def test_fewer_queries_than_keys_are_the_newest(implementation):
    a = arguments(queries=(1, 1, 3, 0, 2))
    out, lse = a.call(attention(implementation))
    exact_out, exact_lse = by_plain_loops(a)
    assert_close(out, exact_out)
    assert_close(lse, exact_lse)


@every_implementation
def test_a_query_that_sees_no_key_gives_zeros_and_no_gradient(implementation):
    a = arguments(Ragged("", (0, 1)), queries=(1, 3))
    leaves = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    out, lse = a.call(attention(implementation))
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
        return changed.call(attention(implementation))[0]

    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in (a.q, a.k, a.v)])


@every_implementation
def test_spare_capacity_is_not_read_and_is_written_as_zeros(implementation):
    a = arguments(Ragged("spare", (4, 3), spare=2))
    for x in (a.q, a.k, a.v):
        x[7:] = torch.nan
    leaves = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    out, lse = a.call(attention(implementation))
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
        replace(arguments(), **change(arguments())).call(attention(implementation))


@every_kernel
def test_on_cuda_a_float64_head_of_more_than_128_is_a_value_error(implementation):
    op = attention(implementation)
    a = arguments(head_size=128)
    assert_close(a.call(op)[0], by_plain_loops(a)[0])
    wide = arguments(head_size=129)
    if not implementation.is_cuda_kernel:
        assert_close(wide.call(op)[0], by_plain_loops(wide)[0])
        return
    with pytest.raises(ValueError, match=r"head size of q must be in 1..128 for Double.*, got 129"):
        wide.call(op)


@pytest.mark.parametrize("of", ["queries", "keys", "both"])
@senseless_offsets
@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_senseless_offsets_are_not_followed_out_of_the_tensors(implementation, offsets, of):
    wrong = torch.tensor(offsets, dtype=torch.int32)
    right = torch.linspace(0, 34, len(offsets)).int()
    a = replace(
        arguments(dtype=torch.float32),
        cu_seqlens_q=right if of == "keys" else wrong,
        cu_seqlens_k=right if of == "queries" else wrong,
    ).to(implementation.device)
    tensors = {n: x for n, x in vars(a).items() if isinstance(x, torch.Tensor)}
    a = replace(a, **{n: amid_traps(x) for n, x in tensors.items()})
    out, lse = a.call(implementation.op("causal_attention"))
    grad = amid_traps(torch.ones_like(out))
    backward = implementation.op("causal_attention_backward")
    inputs = list(vars(a).values())
    gradients = backward(grad, *inputs[:3], amid_traps(out), amid_traps(lse), *inputs[3:])
    # What no sequence owns in front of the first is not written; what two own has no gradient to speak of.
    first = [max(0, x[0].item()) for x in (a.cu_seqlens_q, a.cu_seqlens_k)]
    assert torch.isfinite(out[first[0] :]).all()
    if list(offsets) == sorted(offsets):
        for x, begin in zip(gradients, (first[0], first[1], first[1]), strict=True):
            assert torch.isfinite(x[begin:]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@every_implementation
def test_a_longer_sequence_than_max_seqlen_is_a_value_error_or_on_cuda_still_right(
    implementation, dtype
):
    a, op = arguments(Ragged("", (200, 5)), dtype=dtype), attention(implementation)
    short = replace(a, max_seqlen_q=16, max_seqlen_k=16)
    if implementation.is_cuda_kernel:  # cannot know without waiting for the device
        grad = torch.randn(a.q.shape).to(dtype)
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


def in_plain_pytorch(a, matmul=torch.matmul):
    """An op that goes sequence by sequence, as one would write it without thinking of precision."""

    def op(q, k, v, *_):
        heads = q.shape[1]
        outputs = [q[:0]]
        for begin, end in pairwise(a.cu_seqlens_k.tolist()):
            queries, keys, values = (x[begin:end].transpose(0, 1) for x in (q, k, v))
            scores = matmul(queries, keys.transpose(1, 2)) * a.scale
            future = torch.ones(end - begin, end - begin).triu(1).bool()
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            if a.dropout_p > 0:
                rows = torch.arange(begin, end) * heads + torch.arange(heads)[:, None]
                keep = dropout_keep(rows, end - begin, a.dropout_p, a.seed, a.site)
                weights = weights * keep / (1 - a.dropout_p)
            outputs.append(matmul(weights, values).transpose(0, 1))
        return torch.cat(outputs), None

    return op


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


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kernel
def test_inputs_may_begin_at_any_address(implementation, dtype, offset):
    a = arguments(Ragged("", (20, 3)), head_size=8, dtype=dtype).to(implementation.device)
    op = implementation.op("causal_attention")

    def moved(x):
        room = torch.empty(x.numel() + offset, dtype=dtype, device=x.device)[offset:]
        return room.view(x.shape).copy_(x)

    there = replace(a, q=moved(a.q), k=moved(a.k), v=moved(a.v))
    for x, y in zip(gradients(there, op, moved(a.q)), gradients(a, op, a.q), strict=True):
        assert torch.equal(x, y)


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


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    a, op = arguments().to(implementation.device), implementation.op("causal_attention")
    strided = {
        k: torch.stack([v, torch.zeros_like(v)], -1)[..., 0]
        for k, v in vars(a).items()
        if isinstance(v, torch.Tensor)
    }
    assert torch.equal(replace(a, **strided).call(op)[0], a.call(op)[0])


@every_kernel
def test_opcheck(implementation):
    a = replace(arguments(dtype=torch.float32), dropout_p=0.3, seed=torch.tensor([4]))
    a = a.to(implementation.device)
    leaves = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in vars(a).values()
    ]
    op = getattr(torch.ops, implementation.namespace).causal_attention.default
    torch.library.opcheck(op, tuple(leaves))


@every_kernel
def test_results_repeat_bit_by_bit_with_any_number_of_threads(implementation):
    a = arguments(Ragged("", (600, 100, 30)), 2, 20, dtype=torch.float32)
    a = replace(a, dropout_p=0.3, seed=torch.tensor([4]))
    op = attention(implementation)
    grad = torch.randn(a.q.shape)
    first = gradients(a, op, grad)
    torch.set_num_threads(1)
    second = gradients(a, op, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.fixture
def _restored_precision():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_restored_precision")
def test_float32_products_follow_the_precision_of_matmul():
    allowed = []

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.ssept_ext.causal_attention.default:
                allowed.append(len(args) == 12 and args[-1])  # defaults are left out
            return func(*args, **(kwargs or {}))

    for precision in ("highest", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        with Recording():
            arguments(dtype=torch.float32).call_public(ops.causal_attention)
    assert allowed == [False, True, False]


@pytest.mark.usefixtures("_restored_precision")
def test_compiled_float32_products_follow_the_precision_of_matmul():
    allowed = []

    def recording(graph, _):
        (node,) = [x for x in graph.graph.nodes if "causal_attention" in str(x.target)]
        allowed.append(node.args[-1])
        return graph

    compiled = torch.compile(ops.causal_attention, backend=recording, fullgraph=True)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        arguments(dtype=torch.float32).call_public(compiled)
    assert allowed == [False, True]


def big(lengths, spare=0, **options):
    """On the GPU, with capacity for more tokens."""
    a = arguments(Ragged("", lengths, spare), 2, 50, dtype=torch.bfloat16)
    return replace(a, scale=50**-0.5, **options).to("cuda")


@pytest.mark.cuda
def test_a_sequence_of_4096_tokens():
    a = converted(big((4096,)), torch.float32)
    op = torch.ops.ssept_ext.causal_attention
    exact = gradients(converted(a, torch.float64), reference.causal_attention, a.q.double())
    for x, y in zip(gradients(a, op, a.q), exact, strict=True):
        assert_close(x, y)


@pytest.mark.cuda
def test_a_cuda_graph_takes_new_lengths_and_new_masks():
    op = torch.ops.ssept_ext.causal_attention
    seed = torch.tensor([1])
    a = big((200, 150, 3), spare=47, dropout_p=0.3, seed=seed)
    b = big((100, 0, 200), spare=100, dropout_p=0.3, seed=seed + 1)
    gradients(a, op, a.q)  # what a first call sets up
    leaves = replace(a, q=a.q.clone().requires_grad_())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = leaves.call(op)
        (grad_q,) = torch.autograd.grad(out, leaves.q, a.q)
    for batch in (a, b):
        expected = gradients(batch, op, a.q)
        with torch.no_grad():
            for name in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "seed"):
                getattr(leaves, name).copy_(getattr(batch, name))
        graph.replay()
        assert torch.equal(out, expected[0])
        assert torch.equal(grad_q, expected[1])


@pytest.mark.cuda
def test_memory_is_linear_in_the_length():
    def extra(tokens):
        a = big((tokens,))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(a, torch.ops.ssept_ext.causal_attention, a.q)
        return torch.cuda.max_memory_allocated() - before

    assert extra(8192) < 2.5 * extra(4096)


def test_compiling_for_changing_lengths_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.causal_attention, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 3), (4, 9), (1, 12), (7, 7), (2, 30)]:
        a = arguments(Ragged("", lengths))
        assert_close(a.call_public(compiled)[0], by_plain_loops(a)[0])
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
