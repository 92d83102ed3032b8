"""A training that was killed goes on as if it had not been."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssept_ext import SSEPT, WarpSampler
from ssept_ext.checkpoint import TRAINING_FILE, load_training, save_training
from ssept_ext.datasets import synthetic
from ssept_ext.training import TrainingOptions, train_model

STEPS_IN_AN_EPOCH = 4
EPOCHS = 6


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads only cost time on models this small, most of all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class DeadlySampler(WarpSampler):
    """Has the process killed when batch `last` is asked for."""

    last = -1

    def next_packed(self):
        if self.tell() == self.last:
            os.kill(os.getpid(), 9)
        return super().next_packed()


def train(folder, last=-1, epochs=EPOCHS, **changes):
    """Train with everything that is random: dropout, SSE, windows, two threads that draw."""
    torch.set_num_threads(1)
    dataset = synthetic(num_users=40, min_events=8, max_events=20)
    torch.manual_seed(0)
    model = SSEPT(
        item_num=dataset.itemnum,
        user_num=dataset.usernum,
        seq_max_len=6,
        num_blocks=1,
        embedding_dim=8,
        conv_dims=[16, 16],
        dropout_rate=0.2,
        num_neg_test=9,
        sse_user_prob=0.5,
        sse_item_prob=0.1,
        sse_joint=True,
    )
    with DeadlySampler(
        dataset.user_train,
        dataset.usernum,
        dataset.itemnum,
        batch_size=10,
        maxlen=6,
        n_workers=2,
        seed=changes.pop("seed", 3),
        window_sampling_prob=changes.pop("window_sampling_prob", 0.5),
    ) as sampler:
        sampler.last = last
        history = train_model(
            model,
            dataset,
            sampler,
            epochs,
            batch_size=10,
            learning_rate=changes.pop("learning_rate", 0.01),
            val_epoch=2,
            verbose=False,
            options=TrainingOptions(restore_best=True, **changes),
            checkpoint=folder,
        )
    figures = {name: history[name] for name in ("loss", "val_ndcg", "val_hr")}
    return figures, model.state_dict()


def train_in_a_process(folder, last):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from test_resume import train; train({str(folder)!r}, {last})"
    )
    # In another folder, so as to import the installed package and not a checkout.
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, check=False, timeout=120).returncode


def assert_same(left, right):
    assert left[0] == right[0]
    assert all(torch.equal(left[1][name], right[1][name]) for name in right[1])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    figures, parameters = train(tmp_path_factory.mktemp("uninterrupted"))
    assert len(figures["loss"]) == EPOCHS
    return figures, parameters


def test_a_run_killed_twice_ends_bit_for_bit_as_one_that_was_not(tmp_path, uninterrupted):
    for last in (2 * STEPS_IN_AN_EPOCH + 1, 5 * STEPS_IN_AN_EPOCH - 1):  # in epochs 3 and 5
        assert train_in_a_process(tmp_path, last) == -9
    assert load_training(tmp_path).epoch == 4

    assert_same(train(tmp_path), uninterrupted)


def test_a_schedule_of_the_learning_rate_goes_on_where_it_was(tmp_path, monkeypatch):
    options = {"schedule": "cosine", "warmup_steps": 10}
    uninterrupted = train(tmp_path / "uninterrupted", **options)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        figures, _ = train(tmp_path, last=2 * STEPS_IN_AN_EPOCH + 1, **options)
    assert len(figures["loss"]) == 2

    assert_same(train(tmp_path, **options), uninterrupted)


def test_a_run_killed_before_its_first_epoch_ends_starts_anew(tmp_path, uninterrupted):
    assert train_in_a_process(tmp_path, 1) == -9

    assert_same(train(tmp_path), uninterrupted)


def test_a_finished_run_returns_at_once_with_its_best_model(tmp_path, uninterrupted):
    train(tmp_path)

    assert_same(train(tmp_path, last=EPOCHS * STEPS_IN_AN_EPOCH), uninterrupted)


def test_a_finished_run_goes_on_for_more_epochs(tmp_path, uninterrupted):
    train(tmp_path, epochs=4)

    assert_same(train(tmp_path), uninterrupted)


def test_a_run_that_ran_out_of_patience_stays_ended(tmp_path, monkeypatch):
    measured = iter([(0.5, 0.5), (0.4, 0.5), (0.3, 0.5)])
    monkeypatch.setattr("ssept_ext.training.measure", lambda *_: next(measured))
    first = train(tmp_path, patience=1)

    assert len(first[0]["loss"]) == 4
    assert_same(train(tmp_path, patience=1), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, "learning_rate = 0.01, got 0.02"),
        ({"seed": 4}, "seed of the sampler = 3, got 4"),
        ({"window_sampling_prob": 0.6}, "window_sampling_prob of the sampler = 0.5, got 0.6"),
        ({"loss": "bpr"}, "loss = 'bce', got 'bpr'"),
        ({"schedule": "cosine"}, "schedule = 'constant', got 'cosine'"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changes, message):
    train(tmp_path, epochs=1)

    with pytest.raises(ValueError, match=f"is of a training with {message}"):
        train(tmp_path, **changes)


def test_a_schedule_that_ends_cannot_be_extended(tmp_path):
    train(tmp_path, epochs=2, schedule="cosine")

    with pytest.raises(ValueError, match="is of a training with num_epochs = 2, got 3"):
        train(tmp_path, epochs=3, schedule="cosine")


def test_a_sampler_that_cannot_seek_is_refused(tmp_path):
    dataset = synthetic(num_users=40, min_events=8, max_events=20)
    model = SSEPT(item_num=dataset.itemnum, user_num=40, embedding_dim=4, conv_dims=[8, 8])

    with pytest.raises(ValueError, match="checkpoint needs a sampler with seek and tell"):
        train_model(model, dataset, object(), checkpoint=tmp_path)


def test_the_state_is_one_file(tmp_path):
    train(tmp_path, epochs=2)

    assert [p.name for p in tmp_path.iterdir()] == [TRAINING_FILE]
    state = load_training(tmp_path)
    assert (state.epoch, state.next_batch) == (2, 2 * STEPS_IN_AN_EPOCH)


def test_a_failed_save_leaves_the_old_state_whole(tmp_path, monkeypatch):
    train(tmp_path, epochs=2)
    state = load_training(tmp_path)

    def fail(tensors, path, header):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ssept_ext.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_training(replace(state, epoch=3), tmp_path)

    assert load_training(tmp_path).epoch == 2
    assert [p.name for p in tmp_path.iterdir()] == [TRAINING_FILE]


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_state_is_named(tmp_path, keep):
    train(tmp_path, epochs=1)
    path = tmp_path / TRAINING_FILE
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ValueError, match=f"{TRAINING_FILE} is damaged"):
        train(tmp_path)


def test_a_state_of_another_format_is_named(tmp_path, monkeypatch):
    train(tmp_path, epochs=1)
    monkeypatch.setattr("ssept_ext.checkpoint.TRAINING_FORMAT", 3)

    with pytest.raises(ValueError, match=f"{TRAINING_FILE} has format 2, this version reads 3"):
        train(tmp_path)
