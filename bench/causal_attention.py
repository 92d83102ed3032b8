"""Benchmark `causal_attention` against PyTorch's attention with the same padding and causal mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from measure import (
    OURS,
    Call,
    Options,
    compare,
    heading,
    large_gemm_floor,
    options_from,
    parser,
    print_title,
)
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from workload import DIM, DROPOUT, Batch, Name, attention_flops, load

from ssept_ext import ops
from ssept_ext.ops.relative_bias import TIME_BUCKETS

WORKLOADS: tuple[Name, ...] = ("ML-1M", "Games")
HEAD_SIZE = 2 * DIM
SCALE = HEAD_SIZE**-0.5


def random_inputs(shape: tuple[int, ...], dtype: torch.dtype, options: Options) -> list[Tensor]:
    """q, k, v"""
    return [
        torch.randn(shape, dtype=dtype, device=options.device, requires_grad=True) for _ in range(3)
    ]


def ours(
    batch: Batch,
    p: float,
    backward: bool,
    dtype: torch.dtype,
    options: Options,
    *,
    biased: bool = False,
) -> Call:
    packed = batch.packed
    inputs = random_inputs((len(packed.items), 1, HEAD_SIZE), dtype, options)
    grad = torch.randn_like(inputs[0])
    bias: dict[str, Tensor] = {}
    if biased:  # an event an hour, and each query a minute after its own
        widths = {"position_bias": packed.max_seqlen, "time_bias": TIME_BUCKETS}
        tables = {n: torch.randn(1, width, device=options.device) for n, width in widths.items()}
        times = packed.positions * 3600
        inputs += [table.requires_grad_() for table in tables.values()]
        bias = {**tables, "query_times": times + 60, "key_times": times}
    lengths = (packed.cu_seqlens, packed.cu_seqlens, packed.max_seqlen, packed.max_seqlen)
    seed = torch.tensor([1], device=options.device) if p else None

    def run() -> None:
        out, _ = ops.causal_attention(*inputs[:3], *lengths, SCALE, p, seed, **bias)
        if backward:
            torch.autograd.grad(out, inputs, grad)

    return run


def sdpa(
    batch: Batch, p: float, backward: bool, dtype: torch.dtype, options: Options, *, dense: bool
) -> Call:
    """On padded sequences: `dense` ignores the padding, which lets PyTorch use its fastest kernel."""
    real = batch.seq != 0
    num_rows, length = real.shape
    inputs = random_inputs((num_rows, 1, length, HEAD_SIZE), dtype, options)
    grad = torch.randn_like(inputs[0])
    causal = torch.ones(length, length, dtype=torch.bool, device=options.device).tril()
    mask = None if dense else real[:, None, None, :] & causal

    def run() -> None:
        out = F.scaled_dot_product_attention(
            *inputs, attn_mask=mask, dropout_p=p, is_causal=dense, scale=SCALE
        )
        if backward:
            torch.autograd.grad(out, inputs, grad)

    def run_dense() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            run()

    return run_dense if dense else run


def full_length_ours(rows: int, length: int, head_size: int, options: Options) -> Call:
    """Forward and backward in bfloat16 of sequences that are all as long as they can be."""
    inputs = random_inputs((rows * length, 1, head_size), torch.bfloat16, options)
    grad = torch.randn_like(inputs[0])
    offsets = torch.arange(rows + 1, dtype=torch.int32, device=options.device) * length

    def run() -> None:
        lengths = (offsets, offsets, length, length)
        out, _ = ops.causal_attention(*inputs, *lengths, head_size**-0.5)
        torch.autograd.grad(out, inputs, grad)

    return run


def full_length_flash(rows: int, length: int, head_size: int, options: Options) -> Call:
    """The same by PyTorch's flash kernel."""
    inputs = random_inputs((rows, 1, length, head_size), torch.bfloat16, options)
    grad = torch.randn_like(inputs[0])

    def run() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(*inputs, is_causal=True)
        torch.autograd.grad(out, inputs, grad)

    return run


def run_case(name: Name, p: float, backward: bool, dtype: torch.dtype, options: Options) -> None:
    workload = load(name, options.quick)
    batch = workload.batch(options.device)
    case = (batch, p, backward, dtype, options)
    alternatives = {
        OURS: ours(*case),
        "ours, with biases of position and time": ours(*case, biased=True),
        "masked SDPA, padded": sdpa(*case, dense=False),
    }
    if options.device.type == "cuda" and dtype != torch.float32:
        alternatives["dense causal flash SDPA"] = sdpa(*case, dense=True)
    flops = attention_flops(batch.lengths, HEAD_SIZE) * (3 if backward else 1)
    floor = {
        "its FLOPs at the rate of large matrix products": large_gemm_floor(flops, options, dtype)
    }
    heading(
        f"{'Forward and backward' if backward else 'Forward'}, dropout {p}, "
        f"{str(dtype).removeprefix('torch.')}",
        f"{workload.describe(batch)}; 1 head of {HEAD_SIZE}",
    )
    compare(alternatives, floor, options, budget=6)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    half = (torch.bfloat16,) if options.device.type == "cuda" else ()
    workloads = WORKLOADS[:1] if options.quick else WORKLOADS
    for case in product(workloads, (0.0, DROPOUT), (False, True), (torch.float32, *half)):
        run_case(*case, options)


if __name__ == "__main__":
    main()
