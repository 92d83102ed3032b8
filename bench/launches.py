"""What each op of a training step costs on a GPU: kernels, bytes and FLOPs, for `step_report.py`.

Kernels are nodes of a CUDA graph: fills and copies too, and what torch and cuBLAS add by themselves. Of our ops, they
are compared with the emulation (tests/bench/test_step_report.py). For torch's, they were compared with a profile of an
H100, bench/results/gpu-2026-11-28/kernels.txt: the step of then had the 150 kernels that this file counts, and with
SSE the 509.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workload import attention_flops

Arguments = Mapping[str, Any]
"""Of an op, by their names in its schema."""
Formula = Callable[[Arguments, Tensor], int]
"""(arguments, lengths of the sequences) -> a number."""


@dataclass(frozen=True)
class Cost:
    """Of any call of an op: numbers, or formulas for them."""

    kernels: int | Formula = 1
    helpers: int | Formula = 0
    """Further kernels, by which cuBLAS and sums of torch prepare or finish their work on a GPU."""
    flops: Formula = lambda a, lengths: 0
    """Of products only: everything else waits for memory."""
    further_bytes: Formula = lambda a, lengths: 0
    """Beside arguments and results, which count once: rows that are read, or added to, again and again, and what one
    kernel of the op leaves for another."""


@dataclass(frozen=True)
class Call:
    """One call of an op, and what it cost."""

    op: str
    kernels: int
    """With `helpers`."""
    num_bytes: int
    flops: int
    helpers: int = 0


# Ops of torch


def _is_transposed(x: Tensor) -> bool:
    return x.stride(0) < x.stride(1)


def _product_helpers(a: Arguments, _: Tensor) -> int:
    """As profiled: cuBLAS splits gradients of weights, and adds the parts; it clears memory for x @ W.T.

    Batches of products, which we have since split ourselves, have not been profiled: they are taken to have none.
    """
    return int(_is_transposed(a["self"]) or _is_transposed(a["mat2"]))


def _product_flops(a: Arguments, _: Tensor) -> int:
    factor = a["mat1"] if "mat1" in a else a["self"]
    return int(2 * factor.numel() * a["mat2"].shape[1])


def _sum_helpers(a: Arguments, _: Tensor) -> int:
    """A sum over many rows clears its counters first; what is not floating point is converted first."""
    return (a.get("dim") == [0]) + (not a["self"].is_floating_point())


def _multi_tensor_kernels(most: int, a: Arguments, _: Tensor) -> int:
    """One for so many tensors, and for 320 chunks of 64 Ki elements."""
    chunks = sum(math.ceil(x.numel() / 65536) for x in a["self"])
    return max(math.ceil(len(a["self"]) / most), math.ceil(chunks / 320))


_ONE_KERNEL = (
    "arange cat clone copy_ fill_ full full_like index index_add_ index_fill_ new_zeros ones_like roll scalar_tensor "
    "softplus_backward _to_copy zero_ zeros zeros_like"
)
ATEN: dict[str, Cost] = {
    **dict.fromkeys(_ONE_KERNEL.split(), Cost()),
    "select_backward": Cost(2),  # a fill and a copy
    "slice_backward": Cost(2),
    "sum": Cost(1, _sum_helpers),
    "logsumexp": Cost(9),  # amax, abs, eq, masked_fill, sub, exp, sum, log, add
    "mm": Cost(1, _product_helpers, _product_flops),
    "addmm": Cost(1, 0, _product_flops),
    "_foreach_add_": Cost(partial(_multi_tensor_kernels, 110)),
    "_fused_adam_": Cost(partial(_multi_tensor_kernels, 36)),
}
"""Those that are neither pointwise, which are one kernel, nor views, which are none."""


# Ours


def _and_for_users(kernels: int, for_users: int, a: Arguments, _: Tensor) -> int:
    return kernels + for_users * (a["users"] is not None)


def _and_for_biases(kernels: int, for_biases: int, a: Arguments, _: Tensor) -> int:
    """For gradients of position and time: zeros, sums of each block, and their sums."""
    is_biased = a["position_bias"] is not None or a["time_bias"] is not None
    return kernels + for_biases * is_biased


def _attention_flops(products: int, projections: int, a: Arguments, lengths: Tensor) -> int:
    tokens, width = a["x_k"].shape
    of_scores = products * attention_flops(lengths, width) // 2
    return int(of_scores + projections * 2 * tokens * width**2)


def _weight_helpers(count: int, a: Arguments, _: Tensor) -> int:
    """Gradients of weights that our kernels do not add up from parts."""
    return 0 if _in_parts(a) else count


def _in_parts(a: Arguments) -> bool:
    """As csrc/cuda/weight_parts.h decides."""
    x = a["x_k"] if "x_k" in a else a["x"]
    largest = a["weight1"].numel() if "weight1" in a else 2 * a["k_weight"].numel()
    return x.itemsize >= 4 and len(x) % 32 == 0 and len(x) >= 4096 and largest <= 512 * 512


def _bytes_of_parts(a: Arguments, _: Tensor) -> int:
    """The 32 parts of weights' gradients, written and read."""
    weights = (a[x] for x in ("q_weight", "k_weight", "v_weight", "weight1", "weight2") if x in a)
    return 2 * 32 * sum(map(size_of, weights)) if _in_parts(a) else 0


def _layer_flops(products: int, a: Arguments, _: Tensor) -> int:
    return int(products * 2 * len(a["x"]) * a["weight1"].numel())


def _bytes_between_products(outer: int, inner: int, a: Arguments, _: Tensor) -> int:
    """So many times all rows as wide as x, and as wide as what is inside."""
    elements = len(a["x"]) * (outer * a["weight1"].shape[1] + inner * a["weight1"].shape[0])
    return int(elements * a["x"].element_size())


def _num_scored(a: Arguments) -> int:
    # Both ids of the forward, or the backward's `items`.
    return sum(a[x].numel() for x in ("positives", "negatives", "items") if x in a)


def _score_flops(products: int, a: Arguments, _: Tensor) -> int:
    return int(products * 2 * _num_scored(a) * a["hidden"].shape[1])


def _scored_rows(times: int, a: Arguments, _: Tensor) -> int:
    row = a["item_weight"].shape[1] * a["item_weight"].element_size()
    return int(times * _num_scored(a) * row)


def _rows_for_tables(a: Arguments, _: Tensor) -> int:
    """Of tables that count as read and written, only the rows of the batch are."""
    tables = [a[x] for x in ("table", "exp_avg", "exp_avg_sq", "sum_of_squares") if x in a]
    rows = (len(a["ids"]) * size_of(x) // len(x) for x in tables)
    return 2 * (sum(rows) - sum(map(size_of, tables)))


OURS: dict[str, Cost] = {
    "user_item_embedding": Cost(),
    "user_item_embedding_backward": Cost(2),
    "position_layer_norm": Cost(),
    "position_layer_norm_backward": Cost(2),
    "multi_head_attention": Cost(4, 1, partial(_attention_flops, 2, 3)),
    "multi_head_attention_backward": Cost(
        partial(_and_for_biases, 8, 3),
        partial(_weight_helpers, 2),
        partial(_attention_flops, 5, 6),
        _bytes_of_parts,
    ),
    "feed_forward": Cost(4, 2, partial(_layer_flops, 2), partial(_bytes_between_products, 3, 3)),
    "feed_forward_backward": Cost(
        7,
        partial(_weight_helpers, 2),
        partial(_layer_flops, 4),
        lambda a, lengths: _bytes_between_products(5, 6, a, lengths) + _bytes_of_parts(a, lengths),
    ),
    "gated_residual": Cost(),
    "gated_residual_backward": Cost(),
    "swiglu": Cost(),
    "swiglu_backward": Cost(),
    "sampled_loss": Cost(2, 0, partial(_score_flops, 1), partial(_scored_rows, 1)),
    "sampled_loss_backward": Cost(
        partial(_and_for_users, 2, 1), 0, partial(_score_flops, 2), partial(_scored_rows, 2)
    ),
    "lazy_adam": Cost(further_bytes=_rows_for_tables),
    "rowwise_adagrad": Cost(further_bytes=_rows_for_tables),
}
"""With what they call of torch."""


class Recorder(TorchDispatchMode):
    """Notes the cost of every op that reaches the dispatcher; a LookupError if nothing is known of one."""

    def __init__(self, lengths: Tensor) -> None:
        """For a batch with sequences of these lengths."""
        super().__init__()
        self.calls: list[Call] = []
        self._lengths = lengths

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        # Adam returns nothing, and has no kernel for tensors without memory.
        out = None if "_fused_adam_" in func.name() else func(*args, **kwargs)
        call = call_of(func, args, kwargs, out, self._lengths)
        if call.kernels > 0:
            self.calls.append(call)
        return out


def call_of(op: torch._ops.OpOverload, args: Any, kwargs: Any, out: Any, lengths: Tensor) -> Call:
    name, parameters = op._schema.name.split("::")[1], op._schema.arguments
    given = {x.name: x.default_value for x in parameters if x.has_default_value()}
    given |= dict(zip((x.name for x in parameters), args, strict=False)) | kwargs
    if op.is_view or name == "_unsafe_view" or not _tensors(given, out):
        return Call(name, 0, 0, 0)
    cost = (ATEN if op.namespace == "aten" else OURS).get(name)
    if cost is None and torch.Tag.pointwise in op.tags:
        cost = Cost()
    if cost is None:
        raise LookupError(f"bench/launches.py does not know how many kernels {op} launches")
    kernels = cost.kernels if isinstance(cost.kernels, int) else cost.kernels(given, lengths)
    helpers = cost.helpers if isinstance(cost.helpers, int) else cost.helpers(given, lengths)
    written = [given[x.name] for x in parameters if x.is_write] or out
    num_bytes = sum(map(size_of, _tensors(given) + _tensors(written)))
    num_bytes += cost.further_bytes(given, lengths)
    return Call(name, kernels + helpers, num_bytes, cost.flops(given, lengths), helpers)


def _tensors(*trees: object) -> list[Tensor]:
    return [x for x in tree_leaves(trees) if isinstance(x, Tensor)]


def size_of(x: Tensor) -> int:
    """Bytes; what is expanded counts once."""
    strides = zip(x.shape, x.stride(), strict=True)
    return x.element_size() * math.prod(n for n, stride in strides if stride > 0 or n == 0)
