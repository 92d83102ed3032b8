"""`bench/gpu_check.py`: a prepared folder is enough for the check, which keeps every figure whatever happens to it."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import ssept_ext

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.append(str(BENCH))
gpu_check = importlib.import_module("gpu_check")
install, figures, sanitize, stages, table, prepare = (
    importlib.import_module(f"gpu.{name}")
    for name in ("install", "figures", "sanitize", "stages", "table", "prepare")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of the package that these tests import."""
    path = tmp_path_factory.mktemp("wheel") / "ssept_ext-9.9-py3-none-any.whl"
    package = Path(ssept_ext.__file__).parent
    with zipfile.ZipFile(path, "w") as file:
        for source in package.rglob("*"):
            if source.is_file() and "__pycache__" not in source.parts:
                file.write(source, source.relative_to(package.parent))
        file.writestr("ssept_ext-9.9.dist-info/METADATA", "Name: ssept_ext\nVersion: 9.9\n")
    return path


@pytest.fixture(scope="module")
def prepared(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "folder"
    data = tmp_path_factory.mktemp("data") / "events.txt.gz"
    data.write_bytes(b"events")
    gpu_check.main(["--prepare", str(folder), "--wheel", str(wheel), "--data", str(data)])
    return folder


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_prepared_folder_has_wheel_sources_tests_and_data(prepared, wheel):
    files = names(prepared)

    assert {f"wheel/{wheel.name}", "data/events.txt.gz", "prepared.json"} <= files
    assert {"bench/gpu_check.py", "bench/gpu/step.py", "bench/baselines/eager.py"} <= files
    assert {"tests/ops/test_causal_attention.py", "csrc/schema.cpp", "pyproject.toml"} <= files
    headers = Path(prepare._ask(sys.executable, prepare.HEADERS))
    if (headers / "Python.h").exists():
        assert f"include/{headers.name}/Python.h" in files
    unwanted = (".so", ".pyc", ".part")
    assert not [f for f in files if f.endswith(unwanted) or f.startswith("bench/results")]


def test_a_folder_that_would_be_too_large_is_not_made(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "LIMIT", 2000)

    with pytest.raises(SystemExit, match=r"would take \d+\.\d MB, and may take 0 MB"):
        gpu_check.main(["--prepare", str(tmp_path / "folder"), "--wheel", str(wheel)])

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(prepared, wheel):
    before = names(prepared)

    with pytest.raises(SystemExit, match="is not empty"):
        gpu_check.main(["--prepare", str(prepared), "--wheel", str(wheel)])

    assert names(prepared) == before


def test_a_folder_that_git_would_take_in_is_refused(wheel, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("ignored/\n")
    folder = tmp_path / "ignored" / "folder"

    gpu_check.main(["--prepare", str(folder), "--wheel", str(wheel)])
    with pytest.raises(SystemExit, match="git does not ignore"):
        gpu_check.main(["--prepare", str(tmp_path / "folder"), "--wheel", str(wheel)])

    assert (folder / "prepared.json").exists()


def test_a_file_of_data_that_is_missing_is_named(wheel, tmp_path):
    with pytest.raises(SystemExit, match=r"no\.gz is no file"):
        gpu_check.main(["--prepare", str(tmp_path / "x"), "--wheel", str(wheel), "--data", "no.gz"])


def test_a_wheel_is_built_by_the_python_of_the_other_machine_only(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PYTHON", "2.7")

    with pytest.raises(SystemExit, match=r"must be built by Python 2\.7, and .* is 3\.\d+"):
        gpu_check.main(["--prepare", str(tmp_path / "folder")])


def command(folder, out):
    script = str(folder / "bench" / "gpu_check.py")
    return [sys.executable, script, "--dry-run", "--out", str(out)]


def lines_of(out):
    path = out / "figures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_the_dry_run_takes_every_stage_from_the_prepared_folder_alone(prepared, tmp_path):
    out = tmp_path / "results"

    done = subprocess.run(
        command(prepared, out), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    log = (out / "log.txt").read_text() + (out / "tests.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    stage_names = [line["stage"] for line in lines_of(out) if "stage" in line]
    assert stage_names == [s.name for s in stages.stages_of("cuda", out, tmp_path, quick=False)]
    assert names(out) == {
        *("figures.jsonl", "kernels.txt", "log.txt", "sanitizer.txt", "summary.txt", "tests.txt")
    }
    # From the wheel, although the folder has the sources, too.
    assert figures.read(out / "figures.jsonl")["versions"]["build"]["version"] == "9.9"
    summary = (out / "summary.txt").read_text()
    assert done.stdout.endswith(summary)
    not_measured = [line for line in summary.splitlines() if line.endswith("not measured")]
    assert all("NDCG" in line for line in not_measured), not_measured  # not within two epochs
    assert not [line for line in summary.splitlines() if line.endswith((" met", "not met"))]


def tree_of(pid):
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree_of(int(child)))]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_check_that_is_killed_half_way_has_every_figure_it_finished(prepared, tmp_path):
    out = tmp_path / "results"
    process = subprocess.Popen(
        command(prepared, out),
        env=os.environ | {"TMPDIR": str(tmp_path)},  # it cannot delete what it leaves there
        stdout=subprocess.DEVNULL,
    )
    try:
        while not any(line.get("figure") == "step TF32" for line in lines_of(out)):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        for pid in tree_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    log = (out / "log.txt").read_text().splitlines()
    announced = [json.loads(line) for line in log if line.startswith("{") and line.endswith("}")]
    assert len(announced) >= 7
    assert [line for line in announced if line not in lines_of(out)] == []
    summary = (out / "summary.txt").read_text()
    assert "smoke" in summary
    assert "not measured" in summary


def stage(name, code, limit=30.0):
    return stages.Stage(name, ("-c", code), limit)


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run the check on stages of one's own; returns exit code, outcomes by name, and seconds."""

    def run(*stages_to_run, budget=60):
        monkeypatch.setattr(stages, "stages_of", lambda *_, **__: stages_to_run)
        out = tmp_path / "results"
        begin = time.monotonic()
        code = gpu_check.main(["--dry-run", "--out", str(out), "--budget", str(budget)])
        outcomes = {line["stage"]: line for line in lines_of(out)}
        return code, outcomes, time.monotonic() - begin

    return run


def test_a_stage_that_fails_stops_no_later_one_but_fails_the_whole(check, capsys):
    code, outcomes, _ = check(
        stage("wrong", "raise SystemExit(3)"),
        stage("slow", "import time; time.sleep(60)", limit=0.5),
        stage("right", "print('done')"),
    )

    assert code == 1
    assert [outcome["passed"] for outcome in outcomes.values()] == [False, False, True]
    assert outcomes["right"]["note"] == "done"
    output = capsys.readouterr().out
    for why in ("FAILED: exit code 3", "FAILED: took more than 0.5 s"):
        assert why in output


def test_where_all_stages_pass_the_exit_code_is_0(check):
    assert check(stage("right", "print('done')"))[0] == 0


def test_the_budget_cuts_a_stage_and_begins_none_that_it_has_no_time_for(check, monkeypatch):
    monkeypatch.setattr(stages, "LEAST_SECONDS", 1)

    code, outcomes, seconds = check(
        stage("slow", "import time; time.sleep(60)"), stage("late", "print('done')"), budget=2
    )

    assert code == 1
    assert outcomes["slow"]["verdict"].startswith("FAILED: took more than")
    assert outcomes["late"]["verdict"] == "no time left"
    assert seconds < 10


def test_a_stage_that_is_cut_takes_all_its_processes_along(check, tmp_path):
    child = f"import time; time.sleep(1.5); open({str(tmp_path / 'late')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    check(stage("slow", parent, limit=0.5))

    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_results_of_another_run_are_not_mixed_with_new_ones(check, capsys):
    check(stage("right", "print('done')"))

    with pytest.raises(SystemExit):
        check(stage("right", "print('done')"))

    assert "has the results of another run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path)])
    assert "no GPU is available" in capsys.readouterr().err


def test_a_part_that_fails_leaves_the_later_ones_a_new_process(tmp_path):
    (tmp_path / "demo.py").write_text(
        "import os\n"
        "from gpu.parts import main\n"
        "def first(run): run.record('first', variable=os.environ.get('BROKEN'))\n"
        "def broken(run): import torch; torch.broken = True; raise ValueError('broken')\n"
        "def last(run): import torch; run.record('last', clean=not hasattr(torch, 'broken'))\n"
        "main({'first': first, 'broken': broken, 'last': last})\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "demo", "--device", "cpu", "--out", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{BENCH}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "ValueError: broken" in done.stderr
    assert [line["figure"] for line in lines_of(tmp_path)] == ["first", "last"]
    assert figures.read(tmp_path / "figures.jsonl")["last"]["clean"]


def test_of_a_figure_the_newest_is_read_and_half_a_line_is_none(tmp_path):
    path = tmp_path / "figures.jsonl"
    figures.record(path, "figure", "step", us=2)
    figures.record(path, "stage", "install", passed=True)
    figures.record(path, "figure", "step", us=1)
    with path.open("a") as file:
        file.write('{"figure": "step", "u')

    assert figures.read(path) == {"step": {"us": 1}}


@pytest.mark.parametrize(
    ("wheel_loads", "built"), [(True, False), (False, True)], ids=["loads", "does not load"]
)
def test_a_build_is_made_only_where_the_wheel_does_not_load(
    wheel_loads, built, prepared, tmp_path, monkeypatch
):
    builds = []
    monkeypatch.setattr(install, "ROOT", prepared)
    monkeypatch.setattr(install, "loads", lambda *_: wheel_loads)
    monkeypatch.setattr(install, "build", lambda *_: builds.append(1) or True)

    install.main(["--device", "cpu", str(tmp_path / "site")])

    assert bool(builds) == built
    assert (tmp_path / "site").exists() != built  # nothing of a wheel that does not load is left


def test_an_extension_that_does_not_load_is_noticed(tmp_path):
    (tmp_path / "ssept_ext").mkdir()
    (tmp_path / "ssept_ext" / "__init__.py").write_text("import os; os.abort()")

    assert not install.loads(tmp_path, "cpu")


OURS = "=========     at void ssept::cuda::<unnamed>::forward<float>(int)+0x10 in forward.cu:5"
RACE = (
    "========= Error: Race reported between Write access at void ssept::cuda::backward()+0x10 and"
)
TORCHS = "=========     at void at::native::fill<float>(int)+0x10"
END = "========= ERROR SUMMARY: 1 error"


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (["every kernel ran", "========= ERROR SUMMARY: 0 errors"], None),
        ([TORCHS, "every kernel ran", END], None),
        ([OURS, OURS, "every kernel ran", END], "reports 2 errors of our kernels"),
        ([RACE, "every kernel ran", END], "reports 1 errors of our kernels"),
        (["every kernel ran"], "did not come to its end"),
        ([END], "did not come to its end"),
    ],
    ids=["clean", "torch's", "ours", "a race", "no summary", "script died"],
)
def test_a_sanitizer_fails_by_reports_of_our_kernels_and_by_not_ending(
    output, why, tmp_path, monkeypatch
):
    fake = tmp_path / "compute-sanitizer"
    fake.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(output) + "\nEND\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    arguments = ["initcheck", "--device", "cuda", "--out", str(tmp_path)]

    if why is None:
        sanitize.main(arguments)
    else:
        with pytest.raises(SystemExit, match=why):
            sanitize.main(arguments)


def row_of(name, measured, outcomes=(), device="cuda"):
    summary = table.summary({"versions": {"device": device}, **measured}, outcomes)
    return next(line for line in summary.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("ours", "device", "verdict"),
    [
        (100.0, "cuda", "4.00 x  met"),
        (200.0, "cuda", "2.00 x  not met"),
        (None, "cuda", "not measured"),
        (100.0, "cpu", "not judged: needs a GPU"),
    ],
)
def test_a_target_is_judged_by_figures_of_a_gpu_only(ours, device, verdict):
    measured = {"step TF32, eager baseline": {"us": 400.0}}
    measured |= {"step TF32": {"us": ours}} if ours else {}

    row = row_of("training step TF32, by graph", measured, device=device)

    assert " ".join(row.split()).endswith(" ".join(verdict.split()))


@pytest.mark.parametrize(
    ("seconds", "reached", "verdict"),
    [
        (8.0, True, "8.00 s met"),
        (12.0, True, "12.00 s not met"),
        (70.0, False, "70.00 s not met"),
        (4.0, False, "not measured"),
    ],
)
def test_a_training_that_took_too_long_already_has_missed_its_target(seconds, reached, verdict):
    name = "time to NDCG, sasrec-sampled-softmax"

    row = row_of("ML-1M to validation NDCG", {name: {"seconds": seconds, "reached": reached}})

    assert " ".join(row.split()).endswith(verdict)


@pytest.mark.parametrize(
    ("passed", "verdict", "judged"),
    [
        (True, "passed", "met"),
        (False, "FAILED: exit code 1", "not met"),
        (False, "no time left", "not measured"),
    ],
)
def test_tests_and_sanitizers_are_targets(passed, verdict, judged):
    outcome = stages.Outcome("memcheck", passed, 1.0, verdict, "")

    assert row_of("memcheck", {}, [outcome]).endswith(judged)
