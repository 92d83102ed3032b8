"""A server that has imported what training needs and forks a process for each request.

`support.processes` starts it. A request is a line of JSON on its standard input, the answer a line with the id of the
new process.
"""

import contextlib
import json
import os
import sys

# Torch's optimizers import its compiler when the first one is made.
PRELOADED = ("torch", "torch._dynamo", "torchrec", "ssept_ext.models")


def serve():
    """Return in each process that was forked, with the code that it is to run."""
    for name in PRELOADED:
        with contextlib.suppress(Exception):  # missing or broken: the tests that need it will tell
            __import__(name)
    sys.stdout.flush()
    for line in sys.stdin:
        if os.fork() != 0:
            continue
        request = json.loads(line)
        process = os.fork()
        if process != 0:
            _tell_how_it_ends(process, request["status"])
        _become(request)
        return request["code"]
    sys.exit()


def _tell_how_it_ends(process, path):
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    with open(path + ".part", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
    os.replace(path + ".part", path)
    os._exit(0)


def _become(request):
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, path in enumerate([os.devnull, request["output"], request["errors"]]):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
