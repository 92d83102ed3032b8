"""`causal_attention`, forward and backward, in every implementation."""

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
from support.samples import RAGGED, Ragged, amid_traps, ragged_id, senseless_offsets
from support.tolerances import assert_close


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


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("of", ["queries", "keys", "both"])
@senseless_offsets
@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_senseless_offsets_are_not_followed_out_of_the_tensors(implementation, offsets, of, biased):
    wrong = torch.tensor(offsets, dtype=torch.int32)
    right = torch.linspace(0, 34, len(offsets)).int()
    a = arguments(dtype=torch.float32)
    a = replace(
        with_bias(a) if biased else a,
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
        for x, begin in zip(gradients, (first[0], first[1], first[1], 0, 0), strict=True):
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
