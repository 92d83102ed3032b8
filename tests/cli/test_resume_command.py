"""`ssept resume`: an interrupted run ends like one that was not."""

import csv
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.command_line import TINY, before_batch, ctrl_c, rows_of, train, weights_of
from support.processes import Process

from ssept_ext.checkpoint.training_state import load_training, save_training
from ssept_ext.cli import app as cli

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "float32")])
def test_a_run_of_before_there_was_a_precision_is_resumed(
    data, tmp_path, monkeypatch, bf16, precision
):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data, *(["--bf16"] if bf16 else [])) == 130
    run_file = tmp_path / "run" / "run.json"
    record = json.loads(run_file.read_text())
    del record["options"]["precision"], record["digest"]
    record["options"]["bf16"] = bf16
    run_file.write_text(json.dumps(record))
    state = load_training(tmp_path / "run")
    del state.settings["precision"]
    save_training(replace(state, settings=state.settings | {"bf16": bf16}), tmp_path / "run")

    assert cli.main(["resume", "run", "--device", "cpu"]) == 0

    options = json.loads(run_file.read_text())["options"]
    assert options["precision"] == precision
    assert "bf16" not in options


def test_tensorboard_finds_its_logs_in_the_run_folder_of_a_resumed_run(
    data, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data, "--tensorboard") == 130
    assert cli.main(["resume", "run", "--device", "cpu"]) == 0

    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2


def test_ctrl_c_saves_what_there_is_and_says_how_to_go_on(data, tmp_path, capsys, monkeypatch):
    before_batch(monkeypatch, 4, ctrl_c)  # 2 in an epoch

    code = train(data, epochs="9")

    assert code == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "SIGINT after step 1 of 2 of epoch 3 of 9: the training is saved in run, and the same call resumes it",
        "ssept: to continue: ssept resume run",
    ]
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    assert cli.main(["evaluate", "run"]) == 0


# Stops where it gives batch `index`, until the signal has been sent: a file then says so.
STOPPING = """
import os, signal, sys, time
import torch
from ssept_ext import WarpSampler
from ssept_ext.cli import app as cli
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
honest, index = WarpSampler.next_packed, int(sys.argv[1])
def next_packed(self):
    if self.tell() == index:
        open("stopped", "w").close()
        while not os.path.exists("sent"):
            time.sleep(0.01)
    return honest(self)
WarpSampler.next_packed = next_packed
sys.exit(cli.main(sys.argv[2:]))
"""


def run_and_send(number, index, *argv):
    """Run a command in a process of its own, and send it a signal before batch `index`; exit code and stderr."""
    stopped, sent = Path("stopped"), Path("sent")
    arguments = f"import sys; sys.argv[1:] = {[str(index), *argv]!r}"
    with Process(arguments + STOPPING, Path.cwd()) as process:
        while not stopped.exists():
            assert process.exit_code() is None, process.errors
            time.sleep(0.01)
        os.kill(process.pid, number)
        sent.touch()
        result = process.wait(timeout=120), process.errors
    stopped.unlink()
    sent.unlink()
    return result


def test_a_run_interrupted_twice_ends_like_one_that_was_not(data, tmp_path, capsys):
    options = (
        *("--epochs", "4", "--val-epoch", "1", "--restore-best", "--sse-item-prob", "0.2"),
        *("--data", str(data), *TINY),
    )
    assert cli.main(["train", "--out", "whole", *options]) == 0
    table = rows_of(capsys.readouterr().out)
    # 2 steps are in an epoch.
    code, error = run_and_send(signal.SIGTERM, 2, "train", "--out", "run", *options)
    assert (code, error.splitlines()[-1]) == (143, "ssept: to continue: ssept resume run")
    assert "SIGTERM after step 1 of 2 of epoch 2 of 4" in error
    code, error = run_and_send(signal.SIGINT, 5, "resume", "run", "--device", "cpu")
    assert (code, error.splitlines()[-1]) == (130, "ssept: to continue: ssept resume run")
    assert "SIGINT after step 2 of 2 of epoch 3 of 4" in error

    code = cli.main(["resume", "run", "--device", "cpu"])

    assert code == 0
    assert rows_of(capsys.readouterr().out) == table
    whole, resumed = (tmp_path / out for out in ("whole", "run"))
    assert sorted(p.name for p in resumed.iterdir()) == sorted(p.name for p in whole.iterdir())
    weights = [weights_of(folder).read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]
    rows = [list(csv.DictReader((f / "metrics.csv").open())) for f in (whole, resumed)]
    assert len(rows[1]) == 4
    for name in ("epoch", "step", "loss", "val_ndcg", "val_hr"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]


def test_a_run_that_runs_out_of_patience_is_finished(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ssept_ext.training.loop.rank_candidates", lambda *_: (0.5, 0.5))
    options = ("--val-epoch", "1", "--validation", "sampled", "--patience", "2")

    assert train(data, *options, epochs="9") == 0

    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert not (tmp_path / "run" / "training.safetensors").exists()


def test_a_run_of_an_older_version_is_named(data, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data) == 130
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["options"]["tensorboard"], record["digest"]
    path.write_text(json.dumps(record))
    monkeypatch.setattr("ssept_ext.checkpoint.training_state.TRAINING_FORMAT", 3)

    assert cli.main(["resume", "run", "--device", "cpu"]) == 2

    assert "training.safetensors has format 2, this version reads 3" in capsys.readouterr().err


def test_a_finished_run_cannot_be_resumed(run, capsys):
    assert cli.main(["resume", run]) == 2
    assert "run has no training.safetensors: its training is over" in capsys.readouterr().err


OLD_OPTIONS = {
    "data": "events.txt",
    "col_sep": None,
    "model": "ssept",
    "architecture": "recommenders",
    "seq_max_len": 6,
    "num_blocks": 1,
    "attention_num_heads": 1,
    "item_embedding_dim": 4,
    "user_embedding_dim": None,
    "ffn_dim": None,
    "dropout_rate": 0.2,
    "l2_reg": 0.0,
    "num_neg_test": 5,
    "embedding_init": "uniform",
    "position_bias": False,
    "time_bias": False,
    "cosine_temperature": None,
    "learn_temperature": False,
    "sse_user_prob": 0.0,
    "sse_item_prob": 0.0,
    "sse_target_prob": 0.0,
    "sse_joint": False,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.001,
    "val_epoch": 5,
    "window_sampling_prob": 0.0,
    "num_negatives": 1,
    "popularity_exponent": 0.0,
    "loss": "bce",
    "gbce_t": 0.75,
    "adam_betas": [0.9, 0.999],
    "schedule": "constant",
    "warmup_steps": 0,
    "max_grad_norm": None,
    "bf16": False,
    "patience": 0,
    "restore_best": False,
    "workers": 1,
    "seed": 0,
    "tensorboard": False,
    "out": "run",
    "timeout": 600,
    "device": "cpu",
    "backend": "auto",
}
"""Of a run.json by the version before: its parsed command line, here all defaults but for sizes."""

SAME_AS_OLD = [
    *("--architecture", "recommenders", "--embedding-init", "uniform", "--dropout-rate", "0.2"),
    *("--sse-user-prob", "0", "--sse-item-prob", "0", "--no-sse-joint"),
    *("--learning-rate", "0.001", "--num-negatives", "1", "--loss", "bce"),
    *("--adam-betas", "0.9", "0.999", "--schedule", "constant", "--warmup-steps", "0"),
    *("--validation", "sampled"),
]


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ["--user-embedding-dim", "16"]),
        (
            {"user_embedding_dim": 3, "ffn_dim": 5, "workers": 2, "bf16": True},
            ["--user-embedding-dim", "3", "--ffn-dim", "5", "--workers", "2", "--bf16"],
        ),
        ({"model": "sasrec", "ffn_dim": 5}, ["--model", "sasrec", "--ffn-dim", "5"]),
    ],
    ids=["defaults", "widths, threads and bf16", "sasrec"],
)
def test_a_run_of_the_version_before_goes_on_by_the_options_it_recorded(
    data, tmp_path, monkeypatch, changes, flags
):
    assert train(data, *SAME_AS_OLD, *flags, out="whole") == 0
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data, *SAME_AS_OLD, *flags) == 130
    run_file = tmp_path / "run" / "run.json"
    record = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({"data": record["data"], "options": OLD_OPTIONS | changes}))

    assert cli.main(["resume", "run", "--device", "cpu"]) == 0

    weights = [weights_of(tmp_path / out).read_bytes() for out in ("whole", "run")]
    assert weights[0] == weights[1]
    assert json.loads(run_file.read_text()) == record  # under today's names from now on
