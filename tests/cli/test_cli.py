"""The command line, on a file of 20 users and models that train in milliseconds."""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssept_ext import SASREC, SSEPT, IdMap, SASRecDataSet, WarpSampler, build_info
from ssept_ext.checkpoint.training_state import load_training, save_training
from ssept_ext.cli import app as cli
from ssept_ext.cli import options, report
from ssept_ext.data.id_map import save_id_maps
from ssept_ext.evaluation.sampled import evaluate, evaluate_popularity, evaluate_valid
from ssept_ext.training import recipe
from ssept_ext.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("_one_thread")

TINY = [
    *("--seq-max-len", "6", "--num-blocks", "1", "--item-embedding-dim", "4"),
    *("--batch-size", "8", "--num-neg-test", "5", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path):
    """20 users (1..21 without 13) with 4 to 9 of 30 items."""
    rng = np.random.default_rng(0)
    lines = [
        f"{user} {item}\n"
        for user in range(1, 22)
        if user != 13
        for item in rng.permutation(30)[: rng.integers(4, 10)] + 1
    ]
    path = tmp_path / "events.txt"
    path.write_text("".join(lines))
    return path


def train(data, *options, out="run", epochs="2"):
    argv = ["train", "--data", str(data), "--out", out, "--epochs", epochs, *TINY, *options]
    return cli.main(argv)


@pytest.fixture
def run(data, capsys):
    """The folder of a finished run."""
    assert train(data) == 0
    capsys.readouterr()
    return "run"


def numbers(table_row):
    return [float(cell) for cell in table_row.split()[1:]]


def weights_of(folder):
    (path,) = folder.glob("model-*.safetensors")
    return path


def rows_of(output):
    """The two rows of the table of results: popularity, model."""
    return output.splitlines()[-2:]


def before_batch(monkeypatch, index, act):
    """Let the sampler do something before it gives the batch with this index."""
    honest = WarpSampler.next_packed

    def next_packed(self):
        if self.tell() == index:
            act()
        return honest(self)

    monkeypatch.setattr(WarpSampler, "next_packed", next_packed)


def fail():
    raise FloatingPointError("the loss is nan at step 2")


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_train_writes_a_run_folder_and_prints_popularity_beside_the_model(data, tmp_path, capsys):
    code = train(data)

    assert code == 0
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "metrics.csv",
        weights_of(folder).name,
        "run.json",
    ]
    output = capsys.readouterr().out
    assert "20 users, 30 items" in output
    popularity, model = rows_of(output)
    dataset, trained = SASRecDataSet(data), SASREC.from_pretrained(folder)
    expected = {
        "popularity": [
            *evaluate_popularity(dataset, 0, 5, split="valid")[::-1],
            *evaluate_popularity(dataset, 0, 5, split="test")[::-1],
        ],
        "SSEPT": [*evaluate_valid(trained, dataset, 0)[::-1], *evaluate(trained, dataset, 0)[::-1]],
    }
    for row in (popularity, model):
        assert numbers(row) == pytest.approx(expected[row.split()[0]], abs=5e-5)


def test_metrics_has_a_line_for_each_epoch(data, tmp_path):
    train(data, "--val-epoch", "2", epochs="3")

    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "seconds", "loss", "val_ndcg", "val_hr"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    seconds = [float(row["seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert [(row["val_ndcg"] != "", row["val_hr"] != "") for row in rows] == [
        (False, False),
        (True, True),
        (False, False),
    ]


def test_every_model_option_reaches_the_model(data, tmp_path):
    code = train(
        data,
        *("--architecture", "original", "--seq-max-len", "7", "--num-blocks", "3"),
        *("--attention-num-heads", "2", "--item-embedding-dim", "6", "--user-embedding-dim", "4"),
        *("--ffn-dim", "12", "--dropout-rate", "0.3", "--l2-reg", "0.01", "--num-neg-test", "9"),
        *("--backend", "reference", "--embedding-init", "xavier"),
        *("--sse-user-prob", "0.9", "--sse-item-prob", "0.1", "--sse-joint"),
    )

    assert code == 0
    assert asdict(SASREC.from_pretrained(tmp_path / "run").config) == {
        "item_num": 30,
        "user_num": 21,
        "architecture": "original",
        "seq_max_len": 7,
        "num_blocks": 3,
        "attention_num_heads": 2,
        "embedding_dim": 6,
        "attention_dim": 100,
        "item_embedding_dim": 6,
        "user_embedding_dim": 4,
        "conv_dims": (12, 10),
        "dropout_rate": 0.3,
        "l2_reg": 0.01,
        "num_neg_test": 9,
        "embedding_init": "xavier",
        "sse_user_prob": 0.9,
        "sse_item_prob": 0.1,
        "sse_target_prob": 0.0,
        "sse_joint": True,
    }


@pytest.mark.parametrize(("model", "kind"), [("ssept", SSEPT), ("sasrec", SASREC)])
def test_both_models_train(data, tmp_path, model, kind):
    assert train(data, "--model", model) == 0
    assert type(SASREC.from_pretrained(tmp_path / "run")) is kind


def test_every_training_option_reaches_the_training(data, monkeypatch):
    calls = {}
    sampler_options = {
        "n_workers": 2,
        "window_sampling_prob": 0.5,
        "num_negatives": 3,
        "popularity_exponent": 0.75,
    }

    def train_model(model, dataset, sampler, *, checkpoint, **options):
        calls.update(options, maxlen=sampler.maxlen, samples=sampler.batch_size, seed=sampler.seed)
        (checkpoint / "training.safetensors").touch()
        return {"loss": [1.0] * 3, "val_ndcg": [], "val_hr": []}

    class Sampler(WarpSampler):
        def __init__(self, *args, **options):
            calls.update({name: options[name] for name in sampler_options if name in options})
            calls["n_workers"] = args[5]
            super().__init__(*args, **options)

    monkeypatch.setattr(recipe, "train_model", train_model)
    monkeypatch.setattr(recipe, "WarpSampler", Sampler)
    train(
        data,
        *("--batch-size", "7", "--learning-rate", "0.01", "--val-epoch", "3", "--workers", "2"),
        *("--seed", "5", "--window-sampling-prob", "0.5", "--num-negatives", "3"),
        *("--popularity-exponent", "0.75", "--loss", "gbce", "--gbce-t", "0.5"),
        *("--adam-betas", "0.8", "0.98", "--schedule", "cosine", "--warmup-steps", "7"),
        *("--max-grad-norm", "2", "--precision", "tf32", "--patience", "4", "--restore-best"),
        epochs="3",
    )

    del calls["callbacks"]
    assert calls == {
        "num_epochs": 3,
        "batch_size": 7,
        "learning_rate": 0.01,
        "val_epoch": 3,
        "eval_batch_size": 256,
        "verbose": True,
        "maxlen": 6,
        "samples": 7,
        "seed": 5,
        **sampler_options,
        **asdict(
            TrainingOptions(
                loss="gbce",
                gbce_t=0.5,
                adam_betas=(0.8, 0.98),
                schedule="cosine",
                warmup_steps=7,
                max_grad_norm=2.0,
                precision="tf32",
                patience=4,
                restore_best=True,
            )
        ),
    }


def test_bf16_is_short_for_a_precision_and_contradicts_another(data, tmp_path, capsys):
    assert train(data, "--bf16", out="short") == 0
    assert train(data, "--precision", "tf32", "--bf16") == 2

    record = json.loads((tmp_path / "short" / "run.json").read_text())["options"]
    assert record["precision"] == "bf16"
    assert "bf16" not in record
    assert "--bf16: not allowed with argument --precision" in capsys.readouterr().err


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "float32")])
def test_a_run_of_before_there_was_a_precision_is_resumed(
    data, tmp_path, monkeypatch, bf16, precision
):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data, *(["--bf16"] if bf16 else [])) == 130
    run_file = tmp_path / "run" / "run.json"
    record = json.loads(run_file.read_text())
    del record["options"]["precision"]
    record["options"]["bf16"] = bf16
    run_file.write_text(json.dumps(record))
    state = load_training(tmp_path / "run")
    del state.settings["precision"]
    save_training(replace(state, settings=state.settings | {"bf16": bf16}), tmp_path / "run")

    assert cli.main(["resume", "run", "--device", "cpu"]) == 0

    options = json.loads(run_file.read_text())["options"]
    assert options["precision"] == precision
    assert "bf16" not in options


def test_the_seed_makes_a_run_reproducible(data, tmp_path):
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train(data, "--seed", seed, out=out) == 0

    a, b, c = (weights_of(tmp_path / out).read_bytes() for out in "abc")
    assert a == b != c


def test_train_without_data_uses_the_synthetic_set(tmp_path, capsys):
    code = cli.main(["train", "--epochs", "1", "--out", "run", *TINY])

    assert code == 0
    assert "synthetic" in capsys.readouterr().out
    assert cli.main(["predict", "run", "--users", "1"]) == 0
    assert (
        "num_users" in json.loads((tmp_path / "run" / "run.json").read_text())["data"]["synthetic"]
    )


def test_tensorboard_finds_its_logs_in_the_run_folder_of_a_resumed_run(
    data, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data, "--tensorboard") == 130
    assert cli.main(["resume", "run", "--device", "cpu"]) == 0

    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2


def test_tensorboard_that_is_missing_is_one_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    assert train(data, "--tensorboard") == 2

    error = capsys.readouterr().err
    assert error == ("ssept: error: tensorboard is missing: pip install 'ssept_ext[tensorboard]'\n")
    assert not (tmp_path / "run").exists()


def test_the_run_folder_is_named_by_the_time_where_none_is_given(data, tmp_path):
    cli.main(["train", "--data", str(data), "--epochs", "1", *TINY])

    (folder,) = (tmp_path / "runs").iterdir()
    assert weights_of(folder).is_file()


def test_a_folder_that_is_not_empty_is_never_written_to(data, tmp_path, capsys):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "model.safetensors").write_text("old")

    code = train(data, out="precious")

    assert code == 2
    assert "--out precious is not empty" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_text() == "old"


def test_ctrl_c_saves_what_there_is_and_says_how_to_go_on(data, tmp_path, capsys, monkeypatch):
    before_batch(monkeypatch, 4, ctrl_c)  # 2 in an epoch

    code = train(data, epochs="9")

    assert code == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "SIGINT after step 1 of 2 of epoch 3 of 9: the training is saved in run, and the same call resumes it",
        "ssept: ssept resume run goes on",
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
        print("stopped", flush=True)
        while not os.path.exists("sent"):
            time.sleep(0.01)
    return honest(self)
WarpSampler.next_packed = next_packed
sys.exit(cli.main(sys.argv[2:]))
"""


def run_and_send(number, index, *argv):
    """Run a command in a process of its own, and send it a signal before batch `index`; exit code and stderr."""
    sent = Path("sent")
    command = [sys.executable, "-c", STOPPING, str(index), *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        while process.stdout.readline() not in ("stopped\n", ""):
            pass
        process.send_signal(number)
        sent.touch()
        _, error = process.communicate(timeout=120)
    sent.unlink()
    return process.returncode, error


def test_a_run_interrupted_twice_ends_like_one_that_was_not(data, tmp_path, capsys):
    options = (
        *("--epochs", "4", "--val-epoch", "1", "--restore-best", "--sse-item-prob", "0.2"),
        *("--data", str(data), *TINY),
    )
    assert cli.main(["train", "--out", "whole", *options]) == 0
    table = rows_of(capsys.readouterr().out)
    # 2 steps are in an epoch.
    code, error = run_and_send(signal.SIGTERM, 2, "train", "--out", "run", *options)
    assert (code, error.splitlines()[-1]) == (143, "ssept: ssept resume run goes on")
    assert "SIGTERM after step 1 of 2 of epoch 2 of 4" in error
    code, error = run_and_send(signal.SIGINT, 5, "resume", "run", "--device", "cpu")
    assert (code, error.splitlines()[-1]) == (130, "ssept: ssept resume run goes on")
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

    assert train(data, "--val-epoch", "1", "--patience", "2", epochs="9") == 0

    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert not (tmp_path / "run" / "training.safetensors").exists()


def test_a_run_of_an_older_version_is_named(data, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data) == 130
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["options"]["tensorboard"]
    path.write_text(json.dumps(record))
    monkeypatch.setattr("ssept_ext.checkpoint.training_state.TRAINING_FORMAT", 3)

    assert cli.main(["resume", "run", "--device", "cpu"]) == 2

    assert "training.safetensors has format 2, this version reads 3" in capsys.readouterr().err


def test_a_finished_run_cannot_be_resumed(run, capsys):
    assert cli.main(["resume", run]) == 2
    assert "run has no training.safetensors: its training is over" in capsys.readouterr().err


def test_ctrl_c_elsewhere_is_one_line(data, capsys, monkeypatch):
    monkeypatch.setattr(
        report, "evaluate_popularity", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )

    assert train(data) == 130
    assert capsys.readouterr().err == "ssept: interrupted\n"


def test_a_run_that_fails_keeps_its_last_epoch(data, capsys, monkeypatch):
    before_batch(monkeypatch, 3, fail)

    assert train(data, epochs="9") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ssept: error: the loss is nan at step 2"
    assert cli.main(["evaluate", "run"]) == 0


def test_evaluate_repeats_the_table_of_the_run_from_anywhere(data, tmp_path, capsys, monkeypatch):
    cli.main(["train", "--data", data.name, "--out", "run", "--seed", "3", "--epochs", "1", *TINY])
    table = rows_of(capsys.readouterr().out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    code = cli.main(["evaluate", "../run"])

    assert code == 0
    assert rows_of(capsys.readouterr().out) == table


def test_evaluate_with_another_seed_draws_other_negatives(run, data, capsys):
    cli.main(["evaluate", run, "--seed", "11"])

    _, row = rows_of(capsys.readouterr().out)
    expected = evaluate(SASREC.from_pretrained(run), SASRecDataSet(data), seed=11)
    assert numbers(row)[2:] == pytest.approx(expected[::-1], abs=5e-5)


def test_evaluate_can_exclude_all_of_a_users_items(run, data, capsys):
    cli.main(["evaluate", run, "--exclude", "all"])

    rows = [numbers(row) for row in rows_of(capsys.readouterr().out)]
    dataset = SASRecDataSet(data)
    popularity = evaluate_popularity(dataset, 0, 5, exclude="all")
    model = evaluate(SASREC.from_pretrained(run), dataset, 0, exclude="all")
    assert rows[0][2:] == pytest.approx(popularity[::-1], abs=5e-5)
    assert rows[1][2:] == pytest.approx(model[::-1], abs=5e-5)


def test_evaluate_on_other_data(run, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("".join(f"1,{item}\n" for item in (5, 6, 7, 8)))

    code = cli.main(["evaluate", run, "--data", "other.csv", "--col-sep", ","])

    assert code == 0
    assert numbers(rows_of(capsys.readouterr().out)[1])[0] in (0, 1)  # one user


def test_plot_draws_runs_in_one_picture(run, data, tmp_path, capsys):
    assert train(data, "--seed", "1", out="other") == 0
    capsys.readouterr()

    assert cli.main(["plot", run, "other", "--out", "both.png", "--over", "seconds"]) == 0

    assert capsys.readouterr().out == "both.png\n"
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_predict_prints_the_best_unseen_items(run, data, capsys):
    code = cli.main(["predict", run, "--users", "14", "2", "-k", "4"])

    assert code == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["user", "rank", "item", "score"]
    model, dataset = SASREC.from_pretrained(run), SASRecDataSet(data)
    expected = []
    for user in (14, 2):
        history = dataset.User[user]
        candidates = [item for item in range(1, 31) if item not in history]
        scores = model.predict(
            {
                "user": torch.tensor([[user]]),
                "input_seq": torch.tensor([([0] * 6 + history)[-6:]]),
                "candidate": torch.tensor([candidates]),
            }
        )[0].tolist()
        best = sorted(zip(scores, candidates, strict=True), reverse=True)[:4]
        expected += [(user, rank, item) for rank, (_, item) in enumerate(best, 1)]
    assert [tuple(map(int, line.split()[:3])) for line in lines] == expected


def test_predict_prints_fewer_where_fewer_are_unseen(run, data, capsys):
    cli.main(["predict", run, "--users", "1", "-k", "1000"])

    lines = capsys.readouterr().out.splitlines()[1:]
    unseen = set(range(1, 31)) - set(SASRecDataSet(data).User[1])
    assert {int(line.split()[2]) for line in lines} == unseen
    assert len(lines) == len(unseen)


def test_from_a_csv_with_string_ids_to_a_table_of_them(tmp_path, capsys):
    rng = np.random.default_rng(0)
    events = [(f"user-{u}", f"item {i}") for u in range(15) for i in rng.permutation(20)[:9]]
    lines = "".join(f'{user},"{item}",{time}\n' for time, (user, item) in enumerate(events))
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\n{lines}")

    assert cli.main(["prepare", "events.csv", "--out", "events.txt", "--min-item-events", "1"]) == 0
    assert train("events.txt") == 0
    capsys.readouterr()
    assert cli.main(["predict", "run", "--users", "user-3", "user-0"]) == 0

    head, *rows = (line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines())
    assert head == ["user", "rank", "item  score"] or head[:2] == ["user", "rank"]
    expected = SSEPT.from_pretrained("run").recommend(users=["user-3", "user-0"], k=10)
    assert [(user, int(rank), rest.rsplit(maxsplit=1)[0]) for user, rank, rest in rows] == list(
        zip(expected["user"], expected["rank"], expected["item"], strict=True)
    )
    assert cli.main(["predict", "run", "--users", "3"]) == 2
    assert "user 3 has no events in the data, whose users are 15 raw ids" in capsys.readouterr().err


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


def test_info_says_what_will_run(capsys):
    assert cli.main(["info"]) == 0

    output = capsys.readouterr().out
    report = asdict(build_info())
    for op, by_device in report.pop("ops").items():
        assert all(f"{op:<20}  {d:<4}  {backend}" in output for d, backend in by_device.items())
    assert all(str(value) in output for value in report.values())


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
        (["train", "--model", "sasrec", "--sse-user-prob", "1"], "SASREC has no user vectors"),
        (["train", "--sse-item-prob", "2"], "--sse-item-prob: must be in [0, 1], got '2'"),
        (["train", "--gbce-t", "2"], "--gbce-t: must be in [0, 1], got '2'"),
        (
            ["train", "--patience", "1", "--val-epoch", "0"],
            "restore_best need a val_epoch of at least 1",
        ),
        (["resume", "nowhere"], "nowhere is no run folder"),
        (["plot", "nowhere"], "nowhere is no run folder"),
        (["plot"], "the following arguments are required: RUN"),
        (["evaluate", "nowhere"], "nowhere is no run folder"),
        (["predict", "nowhere", "--users", "1"], "nowhere is no run folder"),
        (["predict", "nowhere"], "the following arguments are required: --users"),
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


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"data": {}}'])
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


def test_every_option_has_help_with_its_default():
    parser = cli.make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert sorted(commands.choices) == [
        *("evaluate", "info", "plot", "predict", "prepare", "resume", "train"),
    ]
    for sub in commands.choices.values():
        text = " ".join(sub.format_help().split())
        for action in sub._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            assert action.help, f"{sub.prog} {action.dest}"
            help = " ".join(sub._get_formatter()._expand_help(action).split())
            assert help in text
            if action.option_strings:
                assert ("(required)" in help) or ("(default: " in help) or ("default: " in help)
                assert "None" not in help
