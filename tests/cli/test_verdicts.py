"""What `ssept` makes of an exception: a user's mistake is one line, a bug of the package a traceback."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.command_line import train

from ssept_ext.cli import app as cli
from ssept_ext.cli import commands

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture
def run_failing(monkeypatch, capsys):
    """Runs `ssept info`, which raises an exception, with more words on the command line."""

    def run(error, *words):
        def info(options):
            raise error

        monkeypatch.setattr(commands, "info", info)
        monkeypatch.setattr(
            commands,
            "add_info_options",
            lambda parser: [parser.add_argument(word) for word in words if word[0] == "-"],
        )
        code = cli.main(["info", *words])
        output, told = capsys.readouterr()
        assert output == ""
        return code, told

    return run


@pytest.mark.parametrize(
    "error",
    [
        ValueError("k must be\nat least 1, got 0"),
        FileNotFoundError(2, "No such file", "events.txt"),
        ImportError("matplotlib is missing"),
        FloatingPointError("the loss is nan"),
    ],
    ids=repr,
)
def test_a_users_mistake_is_one_line(run_failing, error):
    message = " ".join(str(error).split())

    assert run_failing(error) == (2, f"ssept: error: {message}\n")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("val_ndcg"),
        TypeError("an unexpected keyword"),
        RuntimeError("shape mismatch"),
        AssertionError(),
        ZeroDivisionError("division by zero"),
    ],
    ids=repr,
)
def test_a_bug_shows_its_traceback_and_asks_for_a_report(run_failing, error):
    code, told = run_failing(error)

    assert code == 70
    *trace, last = told.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1].startswith(type(error).__name__)
    assert last.startswith("ssept: error: this looks like a bug of ssept_ext. Please report it")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OverflowError("Python int too large to convert to C long"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("Storage size calculation overflowed with sizes=[4, 4611686018427387904]"),
        RuntimeError("CUDA out of memory. Tried to allocate 8 GiB."),
        ValueError("Maximum allowed dimension exceeded"),
        RuntimeError("n_workers is 1024, but only 500 threads could be started"),
    ],
    ids=repr,
)
def test_what_does_not_fit_into_memory_names_the_largest_number_given(run_failing, error):
    code, told = run_failing(error, "--seed", "99", "--rows", "8", "--width", "16")

    assert code == 2
    assert told.count("\n") == 1
    assert told.startswith(
        "ssept: error: too large for this machine (the largest number given is --width 16): "
    )


@pytest.mark.parametrize("sizes", [(10**15,), (2**62, 4)])
@pytest.mark.parametrize("make", [torch.empty, np.empty])
def test_what_libraries_say_of_too_large_arrays_is_known(run_failing, make, sizes):
    with pytest.raises((MemoryError, RuntimeError, ValueError)) as refused:
        make(sizes)

    code, told = run_failing(refused.value)

    assert code == 2
    assert told.startswith("ssept: error: too large for this machine: ")


def test_a_long_message_is_cut(run_failing):
    code, told = run_failing(ValueError("x" * 10**6))

    assert code == 2
    assert len(told) < 3000
    assert told.endswith("x...\n")


def test_output_that_nobody_reads_ends_quietly(run, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)

    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        code = cli.main(["predict", run, "--users", "1"])

    assert code == 141
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line(run, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = cli.main(["predict", run, "--users", "1"])

    assert code == 2
    assert capsys.readouterr().err == "ssept: error: [Errno 28] No space left on device\n"


def test_a_run_needs_no_open_streams(data, tmp_path, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    assert train(data) == 0
    assert cli.main(["evaluate", "run"]) == 0
    assert cli.main(["evaluate", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [("--help >&-", 0), ("nonsense 2>&-", 2), ("nonsense <&- >&- 2>&-", 2), ("--help >&- 2>&-", 0)],
)
def test_streams_that_the_shell_has_closed_change_no_exit_code(words, code):
    command = f"{sys.executable} -m ssept_ext {words}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (code, "")


def test_help_does_not_wait_for_torch():
    command = [sys.executable, "-X", "importtime", "-m", "ssept_ext", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "Train and use sequential recommenders" in done.stdout
    assert "argparse" in done.stderr
    assert " torch" not in done.stderr


def run_with_torch(folder, code):
    """Run `ssept info` where `import torch` runs some code; return exit code and stderr."""
    (folder / "torch.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "ssept_ext", "info"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stderr


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"

    assert run_with_torch(tmp_path, code) == (128 + signal.SIGINT, "ssept: interrupted\n")


def test_a_warning_is_one_line(tmp_path):
    code = "import warnings\nwarnings.warn('it is\\nslow')\nraise ImportError('no GPU')"

    expected = "ssept: warning: it is slow\nssept: error: no GPU\n"
    assert run_with_torch(tmp_path, code) == (2, expected)
