"""`torchrun -m ssept_ext`: devices, lost processes and signals."""

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import processes

from ssept_ext import WarpSampler
from ssept_ext.checkpoint.training_state import load_training
from ssept_ext.cli import main
from ssept_ext.cli.options import choose_device
from ssept_ext.training import recipe

pytestmark = pytest.mark.usefixtures("_one_thread")


TIMEOUT_SECONDS = 20


@pytest.fixture
def _second_of_four(monkeypatch):
    """The environment that torchrun makes on a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    variables = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_second_of_four")
def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")

    device = choose_device(argparse.Namespace(device=None, backend="auto"))

    assert device == torch.device("cuda", 1)


@pytest.mark.usefixtures("_second_of_four")
def test_more_processes_than_gpus_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "2")

    assert main(["train"]) == 2

    assert capsys.readouterr().err == (
        "ssept process 1 of 4: error: LOCAL_RANK must be below 2, the number of CUDA devices, got 2: "
        "start fewer processes with --nproc-per-node\n"
    )


@pytest.mark.usefixtures("_second_of_four")
@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("RANK", "x", "0..3"),
        ("RANK", "", "0..3"),
        ("RANK", "4", "0..3"),
        ("RANK", "-1", "0..3"),
        ("WORLD_SIZE", "x", "1..1000000"),
        ("WORLD_SIZE", "0", "1..1000000"),
        ("WORLD_SIZE", "9" * 5000, "1..1000000"),
        ("MASTER_PORT", "x", "1..65535"),
        ("MASTER_PORT", "65536", "1..65535"),
        ("LOCAL_RANK", "x", "0..1000000"),
        ("LOCAL_RANK", "-1", "0..1000000"),
    ],
)
def test_a_wrong_variable_of_torchrun_is_named(monkeypatch, capsys, name, value, limits):
    monkeypatch.setenv(name, value)

    assert main(["train"]) == 2

    error = capsys.readouterr().err
    assert f"the environment variable {name} must be an integer in {limits}, got '" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("_second_of_four")
@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT"])
def test_processes_that_cannot_find_each_other_do_not_train_alone(monkeypatch, capsys, name):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv(name)

    assert main(["train"]) == 2

    message = f"the environment variable WORLD_SIZE is 4, but there is no {name}: start"
    assert message in capsys.readouterr().err


class DeadlySampler(WarpSampler):
    """Kills process 0 where batch 5 is asked for: 2 are an epoch."""

    def next_packed(self):
        if self.tell() == 5 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().next_packed()


def command_line(command, *options):
    return [command, *options, "--device", "cpu", "--timeout", str(TIMEOUT_SECONDS)]


class TerminatingSampler(WarpSampler):
    """Asks process 1, and no other, to end where batch 5 is asked for."""

    def next_packed(self):
        if self.tell() == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().next_packed()


def train_with(sampler, data):
    recipe.WarpSampler = sampler
    sys.exit(main(command_line("train", *options_of_run(data))))


def options_of_run(data, out="run"):
    return [
        *(
            "--data",
            str(data),
            "--out",
            out,
            "--epochs",
            "4",
            "--val-epoch",
            "1",
            "--batch-size",
            "10",
        ),
        *("--seq-max-len", "6", "--num-blocks", "1", "--item-embedding-dim", "4"),
        *("--dropout-rate", "0", "--sse-item-prob", "0.2", "--num-neg-test", "5"),
    ]


def figures_of(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return [[float(row[name]) for name in ("loss", "val_ndcg", "val_hr")] for row in rows]


def test_where_one_process_is_killed_the_other_ends_and_the_run_goes_on(data, tmp_path):
    code = f"import test_torchrun as t; t.train_with(t.DeadlySampler, {str(data)!r})"
    with processes(2, code, tmp_path) as (killed, left):
        assert killed.wait(timeout=120) == -signal.SIGKILL
        assert left.wait(timeout=TIMEOUT_SECONDS + 10) == 1
        output, error = left.output, left.errors

    assert output == ""  # process 0 prints
    assert error.splitlines()[-1].startswith(
        "ssept process 1 of 2: error: another process has ended or does not answer ("
    )
    assert "Traceback" not in error
    assert load_training("run").epoch == 2
    shutil.copytree("run", "copy")

    assert main(command_line("train", *options_of_run(data, "whole"))) == 0
    assert main(command_line("resume", "run")) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = subprocess.run(
        [*torchrun, "-m", "ssept_ext", *command_line("resume", "copy")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert both.stdout.count("popularity") == 1
    for run in ("run", "copy"):
        assert figures_of(Path(run)) == pytest.approx(np.array(figures_of(Path("whole"))), rel=1e-3)
        assert sorted(p.suffix for p in Path(run).iterdir()) == sorted(
            p.suffix for p in Path("whole").iterdir()
        )


def test_a_signal_to_one_process_ends_all_after_the_same_step_and_the_run_goes_on(data, tmp_path):
    code = f"import test_torchrun as t; t.train_with(t.TerminatingSampler, {str(data)!r})"
    with processes(2, code, tmp_path) as started:
        codes = [process.wait(timeout=120) for process in started]
        errors = [process.errors for process in started]

    assert codes == [128 + signal.SIGTERM] * 2
    assert ["to continue: ssept resume run" in error for error in errors] == [True, False]
    state = load_training("run")
    assert (state.epoch, len(state.losses), state.next_batch) == (2, 2, 6)

    assert main(command_line("resume", "run")) == 0
    assert main(command_line("train", *options_of_run(data, "whole"))) == 0

    assert figures_of(Path("run")) == pytest.approx(np.array(figures_of(Path("whole"))), rel=1e-3)
