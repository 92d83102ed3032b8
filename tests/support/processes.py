"""Starts processes that run functions of test files, alone or in groups that work together.

A fork server (of `multiprocessing`) has imported torch and what training imports later, which takes each new process
seconds; those that it forks are as new in all else, unless a test needs them to have imported nothing: see `program`.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = sorted({str(path.parent) for path in TESTS.rglob("test_*.py")})

FORKED = multiprocessing.get_context("forkserver")
# The optimizers of torch import its compiler when the first is made. What is missing is left out.
FORKED.set_forkserver_preload(["torch", "torch._dynamo", "torchrec", "ssept_ext.models"])


def program(code):
    """Arguments that let Python run `code`, which may import `support` and any test file by its name."""
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {FOLDERS!r}\n{code}"]


class Process:
    """A process that runs `code`, which may import `support` and any test file by its name.

    A context, at whose end it is killed.
    """

    def __init__(self, code, folder, variables=()):
        self._output = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        paths = [file.name for file in self._output]
        arguments = (code, str(folder), dict(variables), paths)
        self._process = FORKED.Process(target=_run, args=arguments)
        self._process.start()

    def wait(self, timeout):
        """Its exit code, or -N where signal N ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self._process.pid} runs after {timeout} seconds")
        return self._process.exitcode

    def is_alive(self):
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    @property
    def output(self):
        return self._output[0].read()

    @property
    def errors(self):
        return self._output[1].read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()
        for file in self._output:
            file.close()


def _run(code, folder, variables, outputs):
    os.chdir(folder)  # not the checkout, so as to import the installed package
    os.environ.update(variables)
    sys.path[:0] = FOLDERS
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})


@contextmanager
def processes(count, code, folder):
    """As many processes that run `code`, as torchrun would start them; see `Process`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Process(code, folder, {**group, "RANK": str(rank)}))
            for rank in range(count)
        ]
