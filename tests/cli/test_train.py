"""`ssept train`: what reaches the model, and what a run folder then holds."""

import csv
import json
from dataclasses import asdict, replace

import pytest
from support.command_line import TINY, numbers, rows_of, train, weights_of
from support.factories import write_events
from support.raw_ids import interactions

from ssept_ext import SASREC, SSEPT, SASRecDataSet, WarpSampler
from ssept_ext.cli import app as cli
from ssept_ext.evaluation import Popularity, evaluate, evaluate_full, evaluate_popularity
from ssept_ext.training import recipe
from ssept_ext.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("_one_thread")


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
    assert "ranked among all items" in output
    for row, ranker in ((popularity, Popularity(dataset)), (model, trained)):
        found = [evaluate_full(ranker, dataset, split=split) for split in ("valid", "test")]
        expected = [value for metrics in found for value in (metrics.hr[10], metrics.ndcg[10])]
        assert numbers(row) == pytest.approx(expected, abs=5e-5)
    assert [row.split()[0] for row in (popularity, model)] == ["popularity", "SSEPT"]


def test_train_measures_as_it_validates(data, tmp_path, capsys):
    assert train(data, "--validation", "sampled") == 0

    output = capsys.readouterr().out
    popularity, model = rows_of(output)
    dataset, trained = SASRecDataSet(data), SASREC.from_pretrained(tmp_path / "run")
    assert "ranked among 5 sampled negatives" in output
    for row, by in (
        (popularity, lambda split: evaluate_popularity(dataset, 0, 5, split=split)),
        (model, lambda split: evaluate(trained, dataset, 0, split=split)),
    ):
        expected = [*by("valid")[::-1], *by("test")[::-1]]
        assert numbers(row) == pytest.approx(expected, abs=5e-5)


def test_metrics_has_a_line_for_each_epoch(data, tmp_path):
    train(data, "--val-epoch", "2", epochs="3")

    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ["epoch", "step", "seconds", "loss", "val_ndcg", "val_hr", "validation"]
    assert list(rows[0]) == [*columns, "learning_rate"]
    assert [row["validation"] for row in rows] == ["", "full", ""]
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
        *("--backend", "reference", "--embedding-init", "xavier", "--position-bias"),
        *("--cosine-temperature", "0.1", "--learn-temperature", "--no-tie-item-embeddings"),
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
        "item_feature_dim": 0,
        "embedding_init": "xavier",
        "position_bias": True,
        "time_bias": False,
        "cosine_temperature": 0.1,
        "learn_temperature": True,
        "tie_item_embeddings": False,
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
        "negatives_per": "sequence",
        "popularity_exponent": 0.75,
    }

    def train_run(run, dataset, verbose, checkpoint, callbacks):
        calls.update(asdict(run.loop), **asdict(run.options), verbose=verbose)
        sampler = run.sampler
        calls.update(maxlen=sampler.maxlen, samples=sampler.batch_size, seed=sampler.seed)
        (checkpoint / "training.safetensors").touch()

    class Sampler(WarpSampler):
        def __init__(self, *args, **options):
            calls.update({name: options[name] for name in sampler_options if name in options})
            calls["n_workers"] = args[5]
            super().__init__(*args, **options)

    monkeypatch.setattr(recipe, "train_run", train_run)
    monkeypatch.setattr(recipe, "WarpSampler", Sampler)
    train(
        data,
        *("--batch-size", "7", "--learning-rate", "0.01", "--val-epoch", "3", "--workers", "2"),
        *("--seed", "5", "--window-sampling-prob", "0.5", "--num-negatives", "3"),
        *("--negatives-per", "sequence"),
        *("--popularity-exponent", "0.75", "--loss", "gbce", "--gbce-t", "0.5"),
        *("--adam-betas", "0.8", "0.98", "--schedule", "cosine", "--warmup-steps", "7"),
        *("--max-grad-norm", "2", "--precision", "tf32", "--patience", "4", "--restore-best"),
        *("--logq-correction", "negatives"),
        epochs="3",
    )

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
                logq_correction="negatives",
                validation="full",
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


def test_the_run_folder_is_named_by_the_time_where_none_is_given(data, tmp_path):
    cli.main(["train", "--data", str(data), "--epochs", "1", *TINY])

    (folder,) = (tmp_path / "runs").iterdir()
    assert weights_of(folder).is_file()


class Decided(BaseException):
    """Raised where the recipe of a training is decided, which then need not run; no `except Exception` holds it."""


@pytest.mark.parametrize(("model", "kind"), [("ssept", SSEPT), ("sasrec", SASREC)])
def test_train_and_fit_without_options_have_the_same_recipe(tmp_path, monkeypatch, model, kind):
    def decide(self, *arguments):
        raise Decided(self)

    monkeypatch.setattr(recipe.Recipe, "make_model", decide)
    data = write_events(tmp_path / "events.txt", range(1, 21))
    histories = {str(u): list(map(str, items)) for u, items in SASRecDataSet(data).User.items()}

    with pytest.raises(Decided) as by_train:
        cli.main(["train", "--data", str(data), "--model", model])
    with pytest.raises(Decided) as by_fit:
        kind.fit(interactions(histories))

    (train_recipe,), (fit_recipe,) = by_train.value.args, by_fit.value.args
    assert train_recipe.loop.val_epoch == 5  # for its log; fit has none
    assert fit_recipe == replace(train_recipe, loop=replace(train_recipe.loop, val_epoch=0))
    assert fit_recipe.training.loss == "sampled_softmax"
