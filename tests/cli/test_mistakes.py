"""What a mistake prints, and that it leaves nothing behind."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support.command_line import before_batch, train, weights_of

from ssept_ext import SASREC, IdMap
from ssept_ext.cli import app as cli
from ssept_ext.cli import options, report
from ssept_ext.data.id_map import save_id_maps

pytestmark = pytest.mark.usefixtures("_one_thread")


def fail():
    raise FloatingPointError("the loss is nan at step 2")


def test_tensorboard_that_is_missing_is_one_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    assert train(data, "--tensorboard") == 2

    error = capsys.readouterr().err
    assert error == ("ssept: error: tensorboard is missing: pip install 'ssept_ext[tensorboard]'\n")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_never_written_to(data, tmp_path, capsys):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "model.safetensors").write_text("old")

    code = train(data, out="precious")

    assert code == 2
    assert "--out precious is not empty" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_text() == "old"


def test_ctrl_c_elsewhere_is_one_line(data, capsys, monkeypatch):
    monkeypatch.setattr(
        report, "evaluate_full", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )

    assert train(data) == 130
    assert capsys.readouterr().err == "ssept: interrupted\n"


def test_a_run_that_fails_keeps_its_last_epoch(data, capsys, monkeypatch):
    before_batch(monkeypatch, 3, fail)

    assert train(data, epochs="9") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ssept: error: the loss is nan at step 2"
    assert cli.main(["evaluate", "run"]) == 0


def test_raw_ids_of_other_data_are_refused_before_training(data, tmp_path, capsys):
    users, items = IdMap(["a"], "user"), IdMap(["b"], "item")
    save_id_maps(f"{data}.ids.json", users, items)

    assert train(data) == 2

    assert "raw ids of 1 users and 1 items: they are of other data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_predict_refuses_parameters_that_are_not_finite(run, capsys, monkeypatch):
    model = SASREC.from_pretrained(run)
    torch.nn.init.constant_(model.item_embedding_layer.weight, torch.nan)
    monkeypatch.setattr(SASREC, "from_pretrained", lambda folder, backend, device: model)

    assert cli.main(["predict", run, "--users", "1"]) == 2
    assert "scores are not finite" in capsys.readouterr().err


def test_the_package_is_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "ssept_ext", "train", "--epochs", "0"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "ssept: error: argument --epochs: must be an integer of at least 1, got '0' "
        "(see ssept train --help)"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fit"], "invalid choice: 'fit'"),
        (["train", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["train", "--epochs", "0"], "--epochs: must be an integer of at least 1, got '0'"),
        (["train", "--epochs", "1_0"], "--epochs: must be an integer of at least 1, got '1_0'"),
        (["train", "--learning-rate", "1_0"], "must be finite and positive, got '1_0'"),
        (["train", "--workers", "300000"], "--workers: must be at most 1024, got '300000'"),
        (["train", "--num-blocks", "1000000000000"], "--num-blocks: must be at most 1000, got"),
        (["train", "--seed", f"{10**20}"], "--seed: must be at most 9223372036854775807, got"),
        (["train", "--timeout", "1e300"], "--timeout: must be in [0.001, 1000000000], got '1e300'"),
        (["train", "--out", "bad.txt/run"], "bad.txt is not a folder that can be written to"),
        (["train", "--out", ""], "--out: must be a text that is not empty, got ''"),
        (["train", "--data", ""], "--data: must be a text that is not empty, got ''"),
        (["plot", "nowhere", "--out", "no/curves.png"], "--out: no is not a folder that can be"),
        (["prepare", "bad.txt", "--out", "x", "--min-user-events", "0"], "--min-user-events: must"),
        (["train", "--epochs", "many"], "--epochs: must be an integer of at least 1, got 'many'"),
        (["train", "--val-epoch", "-1"], "--val-epoch: must be an integer of at least 0, got '-1'"),
        (
            ["train", "--learning-rate", "0"],
            "--learning-rate: must be finite and positive, got '0'",
        ),
        (["train", "--learning-rate", "nan"], "must be finite and positive, got 'nan'"),
        (["train", "--learning-rate", "fast"], "must be finite and positive, got 'fast'"),
        (
            ["train", "--window-sampling-prob", "2"],
            "--window-sampling-prob: must be in [0, 1], got '2'",
        ),
        (["train", "--dropout-rate", "1"], "--dropout-rate: must be in [0, 1), got '1'"),
        (["train", "--attention-num-heads", "7"], "attention_num_heads must divide"),
        (["train", "--model", "bert4rec"], "--model: invalid choice: 'bert4rec'"),
        (["train", "--model", "sasrec", "--user-embedding-dim", "4"], "SASREC has no user vectors"),
        (["train", "--col-sep", ","], "--col-sep says how to read a file: give --data too"),
        (["train", "--data", "missing.txt"], "No such file or directory"),
        (["train", "--data", "bad.txt"], "bad.txt, line 2"),
        (["train", "--data", "short.txt"], "no user with a training event and a valid item"),
        (["train", "--data", "short.txt"], "held out of histories of three or more events"),
        (["train", "--model", "sasrec", "--sse-user-prob", "1"], "SASREC has no user vectors"),
        (["train", "--sse-item-prob", "2"], "--sse-item-prob: must be in [0, 1], got '2'"),
        (["train", "--gbce-t", "2"], "--gbce-t: must be in [0, 1], got '2'"),
        (
            ["train", "--patience", "1", "--val-epoch", "0"],
            "restore_best need a val_epoch of at least 1",
        ),
        (["resume", "nowhere"], "nowhere is not a run folder"),
        (["plot", "nowhere"], "nowhere is not a run folder"),
        (["plot"], "the following arguments are required: RUN"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["compare", "nowhere", "else"], "nowhere is not a run folder"),
        (["compare", "nowhere"], "the following arguments are required: RUN"),
        (["predict", "nowhere", "--users", "1"], "nowhere is not a run folder"),
        (["train", "--epochs=--"], "--epochs: must have a value, got --"),
        (["predict", "nowhere", "--users", "1", "-k", "0"], "-k: must be an integer of at least 1"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(tmp_path, capsys, argv, message):
    (tmp_path / "bad.txt").write_text("1 2\n1 two\n")
    (tmp_path / "short.txt").write_text("1 2\n1 3\n2 1\n2 3\n")

    code = cli.main(argv)

    assert code == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("ssept: error: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "short.txt"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "run", "--users", "1", "13"], "user 13 has no events in the data"),
        (["predict", "run", "--users", "99"], "user 99 has no events in the data"),
        (["predict", "run", "--users", "x"], "user x has no events in the data"),
        (["predict", "run", "--users", "1_0"], "user 1_0 has no events in the data"),
        (["predict", "run", "--users", "-5"], "user -5 has no events in the data"),
        (["predict", "run", "--users", f"{10**20}"], f"user {10**20} has no events in the data"),
        (["evaluate", "run", "--data", "large.txt"], "item 31, the model knows items 1..30"),
        (["plot", "run", "new"], "new has no metrics.csv yet: its first epoch is not over"),
        (["plot", "run", "--out", "curves.bmp"], "Format 'bmp' is not supported"),
    ],
)
def test_mistakes_about_a_run_are_one_line(run, tmp_path, capsys, argv, message):
    (tmp_path / "large.txt").write_text("1 31\n1 3\n1 1\n2 3\n")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").touch()

    assert cli.main(argv) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"data": {}}', "[" * 10**5], ids=len)
def test_a_damaged_run_file_is_named(run, tmp_path, capsys, content):
    (tmp_path / "run" / "run.json").write_text(content)

    assert cli.main(["evaluate", run]) == 2
    assert "run.json is damaged" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_one_line(run, tmp_path, capsys):
    weights = weights_of(tmp_path / "run")
    weights.write_bytes(weights.read_bytes()[:50])

    assert cli.main(["evaluate", run]) == 2
    error = capsys.readouterr().err
    assert f"{weights.name} is damaged" in error
    assert error.count("\n") == 1


def test_cuda_that_is_not_there_is_an_error(data, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert train(data, "--device", "cuda") == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_a_native_backend_that_is_not_there_is_an_error(data, capsys, monkeypatch):
    built = SimpleNamespace(ops={"causal_attention": {"cpu": "reference: it was not built"}})
    monkeypatch.setattr(options, "build_info", lambda: built)

    assert train(data, "--backend", "native") == 2
    expected = "causal_attention has none for cpu, only the reference: it was not built"
    assert expected in capsys.readouterr().err
