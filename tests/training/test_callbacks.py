"""What is called after each epoch, on a model that trains in milliseconds."""

import csv
import sys
from types import SimpleNamespace

import pytest
import torch
from support.factories import model_for

from ssept_ext import SSEPT, WarpSampler
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training.callbacks import csv_log, mlflow_log, tensorboard_log, trackio_log

pytestmark = pytest.mark.usefixtures("_one_thread")

STEPS_IN_AN_EPOCH = 4


def train(callbacks, **options):
    """Four epochs, validated after the second and the fourth; the history."""
    dataset = synthetic(num_users=40, min_events=8, max_events=20)
    torch.manual_seed(0)
    model = model_for(dataset, dropout_rate=0.5)
    sizes = {"num_epochs": 4, "batch_size": 10, "val_epoch": 2, "verbose": False}
    with WarpSampler(
        dataset.user_train, dataset.usernum, dataset.itemnum, batch_size=10, maxlen=6, seed=3
    ) as sampler:
        return model.train_model(dataset, sampler, callbacks=callbacks, **(sizes | options))


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_callback_is_told_all_epochs_so_far_and_the_model():
    told = []

    history = train([told.append])

    assert [len(progress.epochs) for progress in told] == [1, 2, 3, 4]
    assert all(type(progress.model) is SSEPT for progress in told)
    last = told[-1].epochs
    assert [e.epoch for e in last] == [1, 2, 3, 4]
    assert [e.step for e in last] == [STEPS_IN_AN_EPOCH * n for n in (1, 2, 3, 4)]
    assert [e.loss for e in last] == history["loss"]
    assert [e.seconds for e in last] == pytest.approx(history["seconds"], abs=5e-4)
    for name in ("val_ndcg", "val_hr"):
        first, second = history[name]
        assert [getattr(e, name) for e in last] == [None, first, None, second]


def test_a_callback_is_told_the_options_of_model_training_and_sampler():
    told = []

    train([told.append], num_epochs=1, warmup_steps=5)

    options = told[0].options
    assert options["model"] == "SSEPT"
    assert options["seq_max_len"] == 6
    assert options["num_epochs"] == 1
    assert options["warmup_steps"] == 5
    assert options["seed of the sampler"] == 3


def test_a_callback_is_told_the_learning_rate_of_each_epochs_last_step():
    told, rates = [], []

    def note(progress):
        told.append(progress.epochs[-1].learning_rate)

    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.Adam.step
        patch.setattr(
            torch.optim.Adam,
            "step",
            lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a),
        )
        train([note], schedule="cosine", warmup_steps=6, learning_rate=0.25)

    assert len(set(told)) == 4
    assert told == rates[STEPS_IN_AN_EPOCH - 1 :: STEPS_IN_AN_EPOCH]


def test_true_ends_the_training_after_all_callbacks_were_called():
    told = []

    history = train([lambda progress: len(progress.epochs) == 2, told.append])

    assert len(history["loss"]) == len(told) == 2


def test_a_training_that_a_callback_ended_stays_ended(tmp_path):
    train([lambda progress: True], checkpoint=tmp_path)

    history = train([pytest.fail], checkpoint=tmp_path)

    assert len(history["loss"]) == 1


def test_what_cannot_be_called_is_an_error_before_training():
    with pytest.raises(
        TypeError, match=r"callbacks must be a sequence of functions, got .*'metrics\.csv'"
    ):
        train([pytest.fail, "metrics.csv"])


@pytest.mark.parametrize("validation", ["sampled", "full"])
def test_the_csv_log_has_a_line_for_each_epoch(tmp_path, validation):
    path = tmp_path / "new" / "metrics.csv"

    history = train([csv_log(path)], validation=validation)

    rows = read(path)
    columns = ["epoch", "step", "seconds", "loss", "val_ndcg", "val_hr", "validation"]
    assert list(rows[0]) == [*columns, "learning_rate"]
    assert [row["step"] for row in rows] == ["4", "8", "12", "16"]
    assert [float(row["loss"]) for row in rows] == history["loss"]
    first, second = map(str, history["val_ndcg"])
    assert [row["val_ndcg"] for row in rows] == ["", first, "", second]
    assert [row["validation"] for row in rows] == ["", validation, "", validation]


def dies_in(epoch):
    """A callback that ends epoch `epoch` as a crash between logs and checkpoint would."""

    def die(progress):
        if len(progress.epochs) == epoch:
            raise OSError("disk full")

    return die


def test_an_interrupted_training_has_each_line_of_the_csv_log_once(tmp_path):
    path = tmp_path / "metrics.csv"
    whole = train([])

    with pytest.raises(OSError, match="disk full"):
        train([csv_log(path), dies_in(epoch=3)], checkpoint=tmp_path)
    assert len(read(path)) == 3
    train([csv_log(path)], checkpoint=tmp_path)

    assert [row["epoch"] for row in read(path)] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in read(path)] == whole["loss"]


def scalars_of(history):
    """What is logged of a history: steps and values by name."""
    epochs, validations = (4, 8, 12, 16), (8, 16)
    return {
        name: [(step, pytest.approx(x, abs=5e-4)) for step, x in zip(steps, values, strict=True)]
        for name, steps, values in (
            ("loss", epochs, history["loss"]),
            ("learning_rate", epochs, [0.001] * 4),
            ("seconds", epochs, history["seconds"]),
            ("validation/NDCG@10", validations, history["val_ndcg"]),
            ("validation/HR@10", validations, history["val_hr"]),
        )
    }


def test_an_interrupted_training_has_each_point_in_tensorboard_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    with pytest.raises(OSError, match="disk full"):
        train([tensorboard_log(logs), dies_in(epoch=3)], checkpoint=tmp_path)
    history = train([tensorboard_log(logs)], checkpoint=tmp_path)

    read = EventAccumulator(str(logs)).Reload()
    points = {
        tag: [(event.step, pytest.approx(event.value)) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }
    assert points == scalars_of(history)
    times = [event.wall_time for event in read.Scalars("loss")]
    assert [t - times[0] for t in times[1:]] == pytest.approx(
        [s - history["seconds"][0] for s in history["seconds"][1:]], abs=0.1
    )


def test_mlflow_has_each_point_at_its_time_and_the_options_in_the_active_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to make
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    told = []

    history = train([told.append])
    with mlflow.start_run() as run:
        mlflow_log()(told[-1])  # as after an interruption, all epochs at once

    client = mlflow.MlflowClient()
    logged = client.get_run(run.info.run_id).data
    assert logged.params == {name: str(value) for name, value in told[0].options.items()}
    points = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in logged.metrics
    }
    expected = scalars_of(history)
    assert points == {name.replace("@", "_at_"): expected[name] for name in expected}
    times = [m.timestamp / 1000 for m in client.get_metric_history(run.info.run_id, "seconds")]
    assert [t - times[0] for t in times] == pytest.approx(
        [s - history["seconds"][0] for s in history["seconds"]], abs=2e-3
    )


def test_trackio_has_each_point_and_the_options_in_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # which it reads when it is imported
    trackio = pytest.importorskip("trackio")
    told = []

    history = train([trackio_log("games", name="first", embed=False), told.append])
    trackio.finish()

    (run,) = trackio.Api().runs("games")
    config = {name: value for name, value in run.config.items() if not name.startswith("_")}
    assert run.name == "first"
    assert config == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in told[0].options.items()
    }
    points = {}
    for row in trackio.SQLiteStorage.get_logs("games", "first"):
        for name in row.keys() - {"step", "timestamp"}:
            points.setdefault(name, []).append((row["step"], row[name]))
    assert points == scalars_of(history)


def test_a_module_like_trackio_is_told_each_point_and_the_options_once():
    begun, points = [], {}

    class Run:
        def log(self, data, step=None, commit=None):
            for name, value in data.items():
                points.setdefault(name, []).append((step, value))

    def init(entity=None, project=None, *, config=None, mode=None):  # as wandb has it
        begun.append((project, mode, config))
        return Run()

    told = []
    log = trackio_log("games", api=SimpleNamespace(init=init), mode="offline")
    assert begun == []
    history = train([log, told.append])

    assert begun == [("games", "offline", told[0].options)]
    assert points == scalars_of(history)


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("tensorboard", tensorboard_log),
        ("mlflow", lambda _: mlflow_log()),
        ("trackio", trackio_log),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ImportError, match=rf"pip install 'ssept_ext\[{module}\]'"):
        make(str(tmp_path))
