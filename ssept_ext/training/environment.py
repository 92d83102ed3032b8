"""Settings of the process that training changes and restores: memory kept by the allocator, TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssept_ext import _extension
from ssept_ext.training.options import Precision


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep the memory that a training step on the CPU frees, for the next step to use.

    Otherwise the allocator returns it to the system, and every step spends up to a quarter of its time on page faults.
    Enter this once per training, because leaving it returns all memory. It does nothing without the extension, or with
    another C library than glibc.
    """
    if _extension.native is None or device.type != "cpu":
        yield
        return
    _extension.native.keep_freed_memory(True)
    try:
        yield
    finally:
        _extension.native.keep_freed_memory(False)


@contextmanager
def matmul_precision(precision: Precision | None) -> Iterator[None]:
    """If `precision` is "tf32", compute float32 products in TF32 on GPUs, in torch and in our kernels."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if precision != "tf32" or before == "tf32":
        yield
        return
    # torch.set_float32_matmul_precision("high") would also make CPUs round.
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before  # "none" may have become "ieee"
