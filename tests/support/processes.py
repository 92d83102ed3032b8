"""Starts processes that run functions of test files, alone or in groups that work together."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def program(code):
    """Arguments that let Python run `code`, which may import `support` and any test file by its name."""
    folders = sorted({str(path.parent) for path in TESTS.rglob("test_*.py")})
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {folders!r}\n{code}"]


def two_processes(code, folder, **options):
    """Two Python processes that run `code`, as torchrun would start them; see `program`."""
    return processes(2, code, folder, **options)


@contextmanager
def processes(count, code, folder, **options):
    """As many Python processes that run `code`, as torchrun would start them; see `program`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            program(code),
            env=os.environ | group | {"RANK": str(rank)},
            cwd=folder,  # not the checkout, so as to import the installed package
            text=True,
            **options,
        )
        for rank in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
