"""`bench/gpu_check.py`: all stages run, on the emulation here, and what goes wrong is told at the end."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
gpu_check = importlib.import_module("gpu_check")


def test_the_dry_run_takes_every_stage_and_prints_the_table_last(tmp_path, capsys):
    code = gpu_check.main(["--dry-run", "--results", str(tmp_path)])

    outcomes = json.loads((tmp_path / "stages.json").read_text())["stages"]
    logs = {o["stage"]: (tmp_path / f"{o['stage']}.log").read_text() for o in outcomes}
    assert code == 0, [logs[o["stage"]][-2000:] for o in outcomes if not o["passed"]]
    assert list(logs) == ["build", "tests", "memcheck", "racecheck", "table", "benchmarks"]
    for name in ("tests", "memcheck", "racecheck"):
        for op in ("bias_dropout", "position_layer_norm", "sampled_logits", "user_item_embedding"):
            assert f"test_{op}.py" in logs[name]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert capsys.readouterr().out.splitlines()[-len(rows) :] == [
        line for line in logs["table"].splitlines() if "not judged" in line
    ]


def stage(name, code, limit=30):
    return gpu_check.Stage(name, ("-c", code), limit)


def test_a_stage_that_fails_stops_no_later_one_but_fails_the_whole(tmp_path, monkeypatch, capsys):
    stages = [
        stage("wrong", "raise SystemExit(3)"),
        stage("slow", "import time; time.sleep(60)", limit=1),
        gpu_check.Stage("missing", ("-c", ""), 30, wrapper=("no-such-program",)),
        stage("right", "print('done')"),
    ]
    monkeypatch.setattr(gpu_check, "stages_of_dry_run", lambda results: stages)

    assert gpu_check.main(["--dry-run", "--results", str(tmp_path)]) == 1

    outcomes = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert [o["passed"] for o in outcomes] == [False, False, False, True]
    assert (tmp_path / "right.log").read_text() == "done\n"
    output = capsys.readouterr().out
    for why in ("exit code 3", "took more than 1 s", "no-such-program"):
        assert why in output


def test_its_time_limits_keep_to_eight_minutes(tmp_path):
    assert sum(s.limit for s in gpu_check.stages_on_gpu(tmp_path)) <= 8 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "no GPU is available" in capsys.readouterr().err
