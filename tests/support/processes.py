"""Starts pairs of processes that work together."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


@contextmanager
def two_processes(code, folder, **options):
    """Two Python processes that run `code`, with modules of tests/training at hand, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = f"import sys; sys.path[:0] = {[str(TESTS), str(TESTS / 'training')]!r}\n"
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", here + code],
            env=os.environ | group | {"RANK": str(rank)},
            cwd=folder,  # not the checkout, so as to import the installed package
            text=True,
            **options,
        )
        for rank in (0, 1)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
