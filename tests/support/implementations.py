"""The implementations of the ops that one test runs on: reference, CPU, CUDA on the emulator, CUDA on a GPU."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from cuda_emulation.build import build_ops

from ssept_ext import build_info, ops
from ssept_ext._extension import IN_PLACE_OPS, OPS, RANKING_OPS
from ssept_ext.ops import reference, row_update_reference

CPU = ("reference", "native")
ALL = ("reference", "native", "emulated", pytest.param("cuda", marks=pytest.mark.cuda))

SIMD = ("baseline", "avx2", "avx512", "avx512_bf16")
NARROWER_SIMD = SIMD[: SIMD.index(build_info().simd or "baseline")]
"""What SSEPT_SIMD can hold the CPU kernels to, short of what they use anyway on this machine."""
NARROWER_REGISTERS = NARROWER_SIMD[:2]
"""Those with other code for each type: "avx512_bf16" has another one than "avx512" for bfloat16 only."""


@dataclass(frozen=True)
class Implementation:
    """Where ops are found and tensors must lie."""

    name: str
    device: str

    def op(self, name: str) -> Callable:
        if self.name == "reference":
            return getattr(row_update_reference if name in IN_PLACE_OPS else reference, name)
        op = getattr(getattr(torch.ops, self.namespace), name)
        key = f"{self.namespace}::{name}", "CUDA" if self.device == "cuda" else "CPU"
        if name in OPS + RANKING_OPS and not torch._C._dispatch_has_kernel_for_dispatch_key(*key):
            pytest.skip("no kernel: the reference is as fast")
        if name in ("sampled_loss", "shared_loss"):  # the rest of its outputs are for its backward
            return lambda *args, **named: op(*args, **named)[0]
        return op

    @property
    def namespace(self):
        return "ssept_emulated" if self.name == "emulated" else "ssept_ext"

    @property
    def is_cuda_kernel(self):
        """Whether bad ids are noted and raised later."""
        return self.name in ("emulated", "cuda")

    def raise_pending_errors(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.op("raise_pending_errors")()


@cache
def implementation(name: str) -> Implementation:
    if name == "emulated":
        load_emulated_ops()
    return Implementation(name, "cuda" if name == "cuda" else "cpu")


@cache
def load_emulated_ops():
    """Register `torch.ops.ssept_emulated`, built in the mode that SSEPT_EMULATION_MODE says."""
    torch.ops.load_library(build_ops(os.environ.get("SSEPT_EMULATION_MODE", "plain")))
    ops.register("ssept_emulated")
