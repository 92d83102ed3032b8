"""Starts processes that run functions of test files, alone or in groups that work together."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = [str(TESTS), *sorted({str(path.parent) for path in TESTS.rglob("test_*.py")})]


def program(code):
    """Arguments that let Python run `code`, which may import `support` and any test file by its name."""
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {FOLDERS!r}\n{code}"]


@cache
def _server():
    """See `support.fork_server`. Not in the checkout, where it would import the sources, not the package."""
    code = (
        "from support.fork_server import serve\n"
        'exec(compile(serve(), "<test>", "exec"), {"__name__": "__main__"})'
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(program(code), cwd=os.sep, **pipes)


class Process:
    """A process that runs `code`, which may import `support` and any test file by its name.

    It is forked from a server that has imported torch, which would cost each new process seconds. It has the
    environment of the test, except for what is read once, by an import; it has the hash seed of the server, and ends as
    any other process. A context manager, which kills it on exit.
    """

    def __init__(self, code, folder, **variables):
        self._files = tempfile.TemporaryDirectory()
        files = {name: str(Path(self._files.name, name)) for name in ("status", "output", "errors")}
        Path(files["output"]).touch()
        Path(files["errors"]).touch()
        request = {"code": code, "folder": str(folder), "environment": {**os.environ, **variables}}
        server = _server()
        server.stdin.write(json.dumps(request | files) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, f"the server of processes has ended: {server.poll()}"
        self.pid = int(answer)

    def exit_code(self):
        """-N where signal N ended it, None while it runs."""
        status = Path(self._files.name, "status")
        return int(status.read_text()) if status.exists() else None

    def wait(self, timeout):
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + timeout
        while (code := self.exit_code()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"still running after {timeout} seconds; it wrote: {self.errors}"
                )
            time.sleep(0.005)
        return code

    @property
    def output(self):
        return Path(self._files.name, "output").read_text()

    @property
    def errors(self):
        return Path(self._files.name, "errors").read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.exit_code() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(timeout=60)
        sys.stdout.write(self.output)  # for pytest to show where a test fails
        sys.stderr.write(self.errors)
        self._files.cleanup()


@contextmanager
def processes(count, code, folder):
    """As many processes that run `code`, as torchrun would start them; see `Process`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        yield [
            stack.enter_context(Process(code, folder, **group, RANK=str(rank)))
            for rank in range(count)
        ]
