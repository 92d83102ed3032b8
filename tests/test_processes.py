"""The processes that tests start: `support.processes`."""

import os
import signal

import pytest
from support.processes import Process, processes

import ssept_ext
from ssept_ext._extension import native


def run(code, folder, **variables):
    with Process(code, folder, **variables) as process:
        return process.wait(timeout=60), process.output, process.errors


def test_they_import_the_package_that_the_tests_import(tmp_path):
    code = "import ssept_ext; from ssept_ext._extension import native; print(ssept_ext.__file__, native)"

    assert run(code, tmp_path) == (0, f"{ssept_ext.__file__} {native}\n", "")


def test_they_have_the_environment_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "1")
    code = "import os; print(os.environ['OF_THE_TEST'], os.environ['GIVEN'], os.getcwd())"

    assert run(code, tmp_path, GIVEN="2") == (0, f"1 2 {tmp_path}\n", "")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("raise ValueError('why')", 1),
    ],
)
def test_how_they_end_is_told(code, expected, tmp_path):
    exit_code, _, errors = run(code, tmp_path)

    assert exit_code == expected
    assert ("ValueError: why" in errors) == (expected == 1)


def test_they_run_what_an_interpreter_runs_at_its_end(tmp_path):
    code = "import atexit; atexit.register(print, 'at exit')"

    assert run(code, tmp_path) == (0, "at exit\n", "")


def test_one_that_hangs_is_killed_at_the_end_of_the_test(tmp_path):
    code = "import sys, time; print('begun', file=sys.stderr, flush=True); time.sleep(600)"

    with Process(code, tmp_path) as process:
        while not process.errors:
            assert process.exit_code() is None
        with pytest.raises(TimeoutError, match="after 0.1 seconds; it wrote: begun"):
            process.wait(timeout=0.1)

    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_group_has_ranks_and_a_port_in_common(tmp_path):
    code = "import os; print(*(os.environ[x] for x in ('RANK', 'WORLD_SIZE', 'MASTER_PORT')))"

    with processes(3, code, tmp_path) as started:
        assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
        found = [process.output.split() for process in started]

    assert [rank for rank, _, _ in found] == ["0", "1", "2"]
    assert {size for _, size, _ in found} == {"3"}
    assert len({port for _, _, port in found}) == 1
