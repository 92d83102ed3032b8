"""Runs one kernel of kernels.cu, here or, as a program, in a process that a sanitizer may end."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import NamedTuple


class Run(NamedTuple):
    """What a kernel left behind."""

    message: str
    """What went wrong, or empty."""
    data: list[float]


def run_kernel(
    library: str,
    kernel: str,
    data: list[float],
    blocks: int = 1,
    threads: int = 64,
    dynamic_bytes: int = 0,
    opt_in: bool = False,
) -> Run:
    """Launch `kernel` of a library built from kernels.cu on a copy of `data`."""
    functions = ctypes.CDLL(library)
    functions.run.restype = ctypes.c_char_p
    buffer = (ctypes.c_float * len(data))(*data)
    message = functions.run(
        functions[kernel], blocks, threads, dynamic_bytes, ctypes.c_bool(opt_in), buffer
    )
    return Run(message.decode(), list(buffer))


if __name__ == "__main__":
    json.dump(run_kernel(**json.loads(sys.argv[1])), sys.stdout)
