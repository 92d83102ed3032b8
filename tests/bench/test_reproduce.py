"""bench/reproduce.py: settings reach the model, runs go on where they were, and figures stand beside published ones."""

import csv
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from ssept_ext import SASREC, SSEPT, SASRecDataSet, WarpSampler
from ssept_ext.data.synthetic import synthetic
from ssept_ext.evaluation import FullMetrics
from ssept_ext.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("_one_thread")

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
reproduce = importlib.import_module("reproduce")


@pytest.fixture
def quick(tmp_path):
    """Run on the synthetic data; returns the folder of the run."""

    def run(*options, preset="sse-pt", name=None):
        reproduce.main(["--quick", "--out", str(tmp_path), "--preset", preset, *options])
        return tmp_path / "synthetic" / (name or f"{preset}-seed-0")

    return run


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_curve_table_metrics_and_its_best_model(quick, capsys):
    folder = quick()

    rows = read_csv(folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == list("123456")
    assert [row["step"] for row in rows] == ["3", "6", "9", "12", "15", "18"]
    assert [bool(row["val_ndcg"]) for row in rows] == [False, True] * 3
    assert (folder.parent / "curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((folder / "result.json").read_text())
    ndcgs = [float(row["val_ndcg"]) for row in rows if row["val_ndcg"]]
    assert result["best_epoch"] == 2 * (1 + ndcgs.index(max(ndcgs)))
    model = SASREC.from_pretrained(folder)
    data = synthetic(num_users=100)
    ndcg, hr = np.array([model.evaluate(data, seed, max_users=None) for seed in range(42, 52)]).T
    assert result["test"]["NDCG@10"] == pytest.approx(ndcg.mean())
    assert result["of all users"]["hr_std"] == pytest.approx(hr.std(ddof=1))
    assert result["test"]["full NDCG@10"] == model.evaluate_full(data).ndcg[10]
    table = (folder.parent / "table.md").read_text()
    assert f"| sse-pt-seed-0 | {result['test']['HR@10']:.4f} |" in table
    assert f"| {hr.mean():.4f} ± {hr.std(ddof=1):.4f}, {ndcg.mean():.4f} ± " in table
    assert capsys.readouterr().out.endswith(table)


def test_the_test_set_is_looked_at_once(quick, monkeypatch):
    folder = quick()
    before = (folder / "result.json").read_text()
    monkeypatch.setattr(reproduce, "measure_test", lambda *_: pytest.fail("looked again"))

    quick()

    assert (folder / "result.json").read_text() == before


def test_an_interrupted_run_goes_on_when_called_again(quick, tmp_path, monkeypatch, capsys):
    whole = quick("--out", str(tmp_path / "whole"))
    whole = tmp_path / "whole" / "synthetic" / whole.name
    honest = WarpSampler.next_packed

    def interrupted(self):
        if self.tell() == 9:  # 3 in an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(WarpSampler, "next_packed", interrupted)
        with pytest.raises(SystemExit) as caught:
            quick()
    assert caught.value.code == 143
    assert "SIGTERM after step 1 of 3 of epoch 4 of 6" in capsys.readouterr().err
    folder = quick()

    for name in ("epoch", "loss", "val_ndcg", "val_hr"):
        expected = [row[name] for row in read_csv(whole / "metrics.csv")]
        assert [row[name] for row in read_csv(folder / "metrics.csv")] == expected
    results = [json.loads((f / "result.json").read_text()) for f in (whole, folder)]
    assert results[0]["test"] == results[1]["test"]


def test_changed_settings_have_a_folder_of_their_own_and_reach_the_run(quick):
    name = "sasrec-seed-3,loss=softmax,item_dim=12,bf16=true,epochs=2"
    folder = quick(
        *("--seed", "3", "--set", "loss=softmax", "--set", "item_dim=12", "--set", "bf16=true"),
        *("--epochs", "2"),
        preset="sasrec",
        name=name,
    )

    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["loss"] == "softmax"
    assert settings["precision"] == "bf16"
    assert len(read_csv(folder / "metrics.csv")) == 2
    assert SASREC.from_pretrained(folder).config.item_dim == 12


@pytest.mark.parametrize(
    ("change", "precision"),
    [("precision=tf32", "tf32"), ("bf16=true", "bf16"), ("bf16=false", "float32")],
)
def test_the_precision_reaches_the_training(change, precision):
    options = reproduce.make_parser().parse_args(["--quick", "--set", change])

    run, _ = reproduce.run_from(options)

    assert run.recipe.training.precision == precision


def test_early_stopping_ends_a_run(quick, monkeypatch):
    monkeypatch.setattr("ssept_ext.training.loop.rank_candidates", lambda *_: (0.5, 0.5))

    folder = quick("--set", "patience=1", name="sse-pt-seed-0,patience=1")

    result = json.loads((folder / "result.json").read_text())
    assert (result["best_epoch"], result["epochs"]) == (2, 4)


@pytest.mark.parametrize("dataset", reproduce.DATASETS)
@pytest.mark.parametrize("preset", reproduce.PRESETS)
def test_every_preset_makes_its_model_sampler_and_options(preset, dataset):
    settings = reproduce.DATASETS[dataset].settings(preset, reproduce.PRESETS[preset])
    data = synthetic(num_users=20, num_clusters=9)
    recipe = Recipe.from_options(reproduce.kind_of(preset), settings)

    model = recipe.make_model(data.itemnum, data.usernum)

    assert type(model) is (SASREC if preset.startswith("sasrec") else SSEPT)
    assert model.config.sse.is_active == (preset.startswith("sse-pt") and "no-sse" not in preset)
    assert model.seq_max_len == settings["seq_max_len"]
    with recipe.make_sampler(data, model.seq_max_len, 0) as sampler:
        negatives = sampler.next_packed().negatives
    assert negatives.shape[1] == settings.get("num_negatives", 1)
    assert recipe.training.loss == settings.get("loss", "bce")
    assert recipe.training.validation == ("full" if preset == "sse-pt++-gated" else "sampled")


@pytest.mark.parametrize("preset", reproduce.PRESETS)
def test_every_preset_lowers_its_loss(quick, preset):
    rows = read_csv(quick(preset=preset) / "metrics.csv")

    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_the_settings_of_the_authors_command_line():
    """`--maxlen 200 --dropout_rate 0.2 --threshold_user 0.08 --threshold_item 0.9`, users 50 and items 100."""
    recipe = Recipe.from_options(SSEPT, reproduce.PRESETS["sse-pt"])
    config = recipe.make_model(item_num=9, user_num=20).config

    assert (config.seq_max_len, config.dropout_rate, config.architecture) == (200, 0.2, "original")
    assert (config.item_dim, config.user_dim, config.conv_dims) == (100, 50, (150, 150))
    assert config.sse.user_prob == pytest.approx(1 - 0.08)
    assert config.sse.item_prob == pytest.approx(1 - 0.9)
    assert config.sse.joint


@pytest.fixture
def finished(tmp_path):
    """Leave the result of a run on ML-1M; returns the folder of all runs."""

    def finish(run, hr, ndcg, preset="sse-pt"):
        result = {
            "test": {"HR@10": hr, "NDCG@10": ndcg},
            "dataset": "ml-1m",
            "preset": preset,
            "best_epoch": 150,
            "epochs": 200,
            "seconds": 1234.5,
            "machine": "a machine",
        }
        (tmp_path / run).mkdir()
        (tmp_path / run / "result.json").write_text(json.dumps(result))
        return tmp_path

    return finish


def evaluate_as_if_users_mattered(model, data, seed, *_, max_users=10_000):
    return (0.5, 0.7) if max_users is None else (0.5, seed / 100)


def test_all_users_and_draws_of_some_are_measured_apart(monkeypatch):
    monkeypatch.setattr("ssept_ext.evaluation.sampled.evaluate", evaluate_as_if_users_mattered)
    monkeypatch.setattr(
        SASREC, "evaluate_full", lambda *_, **__: FullMetrics(9, {10: 0.3}, {10: 0.2}, {}, {}, 0, 9)
    )

    data = SASRecDataSet(histories={1: [1, 2]})
    measured = reproduce.measure_test(SASREC(item_num=2), data)

    assert measured["test"] == {
        "HR@10": 0.7,
        "NDCG@10": 0.5,
        "full HR@10": 0.3,
        "full NDCG@10": 0.2,
    }
    assert measured["of all users"]["hr_std"] == pytest.approx(0)
    assert measured["of draws"]["hr_mean"] == pytest.approx(0.465)


@pytest.mark.parametrize("preset", ["sse-pt", "sse-pt-sampled-softmax"])
def test_figures_stand_beside_the_published_ones(finished, preset):
    folder = finished(f"{preset}-seed-0", 0.84, 0.63, preset)

    header, _, row = reproduce.tabulate(folder).splitlines()

    columns = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert header.split(" | ")[1:5] == ["HR@10", "published", "NDCG@10", "published"]
    assert row.split(" | ")[1:5] == ["0.8400", "0.8341", "0.6300", "0.6281"]
    assert columns["epochs"] == "200"


def test_seeds_of_the_same_settings_are_summed_up(finished):
    for seed, hr in enumerate((0.81, 0.83, 0.82)):
        folder = finished(f"sse-pt-seed-{seed},bf16=true", hr, 0.63)
    finished("sse-pt-seed-0,bf16=false", 0.5, 0.5)

    rows = reproduce.tabulate(folder).splitlines()[2:]

    assert len(rows) == 5
    assert rows[4].startswith(
        "| sse-pt,bf16=true, 3 seeds | 0.8200 ± 0.0100 | 0.8341 | 0.6300 ± 0.0000 |"
    )


def test_a_file_of_events_is_a_data_set(tmp_path):
    events = tmp_path / "mine.txt"
    events.write_text("".join(f"{u}\t{i}\n" for u in range(1, 9) for i in range(u, u + 6)))
    options = reproduce.make_parser().parse_args(["--dataset", str(events), "--out", "out"])

    run, data = reproduce.run_from(options)

    assert run.folder == Path("out/mine/sse-pt-seed-0")
    assert data.usernum == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "colour=red"], "no setting 'colour'; there are seq_max_len"),
        (["--set", "item_dim=x"], "embedding_dim must be an integer of at least 1, got 'x'"),
        (["--set", "bf16=yes"], "must be true or false"),
        (["--set", "precision=fp8"], r"precision must be one of \(.*\), got 'fp8'"),
        (
            ["--set", "bf16=true", "--set", "precision=tf32"],
            "--set precision=tf32 contradicts --set bf16=true",
        ),
        (["--epochs", "1"], r"val_epoch must be in 1\.\.1 \(num_epochs\), got 2"),
        (["--set", "dropout_rate=2"], r"dropout_rate must be in \[0, 1\)"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(quick, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        quick(*arguments)

    assert not list(tmp_path.iterdir())


def test_a_missing_data_set_is_named(tmp_path):
    options = ["--dataset", "games", "--data", str(tmp_path), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"games\.txt\.gz"):
        reproduce.main(options)
