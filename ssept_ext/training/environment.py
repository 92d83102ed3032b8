"""State of the process that training changes, and restores: memory kept by the heap, TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssept_ext import _extension
from ssept_ext.training.options import Precision


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep memory that a training step on the CPU frees, for the next step.

    If it went back to the system, every step would map it in again page by page, which takes a quarter of the
    time of a small step. Enter this once for a whole training, because leaving it gives everything back. Does
    nothing without the extension, or where the C library is not glibc.
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
    """Let GPUs compute float32 products, torch's and ours, in TF32 if `precision` is "tf32"."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if precision != "tf32" or before == "tf32":
        yield
        return
    # Not torch.set_float32_matmul_precision("high"), which makes CPUs round as well.
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before  # "none" may have become "ieee"
