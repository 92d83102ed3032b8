"""`multi_head_attention` where no sequence has two queries: the CPU's kernel makes no keys and values there."""

import pytest
import torch
from support.samples import Ragged
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext import ops

LENGTHS, QUERIES = (70, 1, 5, 0, 33, 2), (1, 1, 0, 1, 1, 1)
WIDE = [torch.float64, torch.float32]


def arguments(heads=2, head_size=5, biased=False, dtype=torch.float64, lengths=LENGTHS, spare=0):
    queries = Ragged("", QUERIES[: len(lengths)], spare=spare)
    keys = Ragged("", lengths, spare=2 * spare)
    generator = torch.Generator().manual_seed(1)
    width = heads * head_size

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    given = {"x_q": normal(queries.num_tokens, width), "x_k": normal(keys.num_tokens, width)}
    for of in "qkv":
        given |= {f"{of}_weight": normal(width, width) / width**0.5, f"{of}_bias": normal(width)}
    given |= {"cu_seqlens_q": queries.cu_seqlens(), "cu_seqlens_k": keys.cu_seqlens()}
    given |= {"max_seqlen_q": 1, "max_seqlen_k": 70, "num_heads": heads, "scale": 0.4}
    if biased:
        wide = torch.promote_types(dtype, torch.float32)
        times = torch.arange(keys.num_tokens) ** 3
        given |= {
            "position_bias": normal(heads, 90).to(wide),
            "time_bias": normal(heads, 128).to(wide),
        }
        given |= {"query_times": times[: queries.num_tokens] + 9**6, "key_times": times}
    return given


def results(given, backend):
    """The output, and the gradients of all that has one but k_bias, which is 0."""
    leaves = {
        n: x.clone().requires_grad_()
        for n, x in given.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    }
    out = ops.multi_head_attention(**given | leaves, backend=backend)
    grad = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad)
    found = zip(leaves, gradients, strict=True)
    return [out.detach(), *(x for n, x in found if n != "k_bias")]


@pytest.mark.parametrize("dtype", [*WIDE, *HALF_TYPES], ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("heads", "head_size"), [(1, 50), (3, 5)])
def test_it_is_the_attention_of_projected_keys(heads, head_size, biased, residual, dtype):
    given = arguments(heads, head_size, biased, dtype) | {"residual": residual}
    wide = {
        n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in given.items()
    }
    exact, plain = (results(x, "reference")[0] for x in (wide, given))
    out, *gradients = results(given, "native")
    assert_close(out, exact, plain)
    # The backward projects the keys, as for more queries.
    _, *expected = results(given | {"max_seqlen_q": 2}, "native")
    assert all(map(torch.equal, gradients, expected))


def test_no_keys_and_values_are_made():
    given = arguments()
    tensors = [x for x in given.values() if not isinstance(x, float)]
    _, _, _, q, k, v = torch.ops.ssept_ext.multi_head_attention(*tensors, given["scale"])
    assert (len(q), len(k), len(v)) == (5, 0, 0)


def test_a_row_has_the_same_bits_alone():
    given = arguments(dtype=torch.float32)
    together = ops.multi_head_attention(**given, backend="native")
    first = {"x_q": given["x_q"][:1], "x_k": given["x_k"][:70]}
    offsets = {f"cu_seqlens_{of}": given[f"cu_seqlens_{of}"][:2] for of in "qk"}
    alone = ops.multi_head_attention(**given | first | offsets, backend="native")
    assert torch.equal(together[:1], alone)


def test_nobody_reads_tail_padding_and_it_becomes_zeros():
    given = arguments(spare=3)
    given["x_k"][-6:] = torch.nan
    out = ops.multi_head_attention(**given, backend="native")
    assert out[:-3].isfinite().all()
    assert (out[-3:] == 0).all()


def test_a_key_that_is_not_finite_makes_its_sequence_so():
    given = arguments()
    given["x_k"][3] = torch.inf  # of the first sequence
    out = ops.multi_head_attention(**given, backend="native")
    assert out.isfinite().all(1).tolist() == [False, True, True, True, True]


def test_two_queries_of_a_sequence_are_an_error():
    given = arguments()
    given["cu_seqlens_q"] = torch.tensor([0, 2, 2, 2, 3, 4, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="max_seqlen of cu_seqlens_q is 1, but a sequence has 2"):
        ops.multi_head_attention(**given, backend="native")


def test_opcheck():
    given = arguments(dtype=torch.float32, biased=True)
    leaves = {
        n: x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in given.items()
    }
    op = torch.ops.ssept_ext.multi_head_attention.default
    torch.library.opcheck(op, (), leaves)
