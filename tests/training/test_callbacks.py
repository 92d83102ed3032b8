"""What is called after each epoch, on a model that trains in milliseconds."""

import csv
import sys

import pytest
import torch
from support.factories import model_for

from ssept_ext import SSEPT, WarpSampler
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training.callbacks import csv_log, tensorboard_log

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
    assert list(rows[0]) == columns
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
    assert points == {
        "loss": list(zip((4, 8, 12, 16), history["loss"], strict=True)),
        "validation/NDCG@10": list(zip((8, 16), history["val_ndcg"], strict=True)),
        "validation/HR@10": list(zip((8, 16), history["val_hr"], strict=True)),
    }
    times = [event.wall_time for event in read.Scalars("loss")]
    assert [t - times[0] for t in times[1:]] == pytest.approx(
        [s - history["seconds"][0] for s in history["seconds"][1:]], abs=0.1
    )


def test_tensorboard_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    with pytest.raises(ImportError, match=r"pip install 'ssept_ext\[tensorboard\]'"):
        tensorboard_log(tmp_path)
