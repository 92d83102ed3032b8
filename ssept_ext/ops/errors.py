"""Errors that CUDA kernels could only note down."""

import torch

from ssept_ext._extension import built_with_cuda


def raise_pending_errors() -> None:
    """Raise the IndexError of an id that a CUDA kernel met outside its table since the last call.

    Kernels treat such an id as padding, so that nothing is read from outside and the device need not stop. Call this
    where the host has waited for the device anyway, such as after reading a loss; `train_model` and `evaluate` do.
    """
    if built_with_cuda():
        torch.ops.ssept_ext.raise_pending_errors()
