"""`causal_attention` in torch: autocast's precision, torch.compile, CUDA graphs, memory; and the padded face."""

from dataclasses import replace

import pytest
import torch
from support.attention import (
    arguments,
    by_plain_loops,
    converted,
    gradients,
)
from support.samples import Ragged
from support.tolerances import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from ssept_ext import ops
from ssept_ext.ops import reference


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
        allowed.append(node.args[11])
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
