"""Errors that CUDA kernels record, to be raised on the host."""

import torch

from ssept_ext._extension import built_with_cuda


def raise_pending_errors() -> None:
    """Raise an IndexError if a CUDA kernel has found an id outside its table since the last call.

    Kernels treat such an id as padding and record the error, because raising it would mean waiting for the device. Call
    this where the host has just waited anyway, such as after reading a loss; `train_model` and `evaluate` do.

    Raises
    ------
    IndexError
        Naming the first such id and the size of its table.

    Examples
    --------
    >>> raise_pending_errors()  # nothing to raise
    """
    if built_with_cuda():
        torch.ops.ssept_ext.raise_pending_errors()
