"""A training that was killed, or told to end, goes on as if it had not been."""

import contextlib
import os
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.factories import model_for
from support.processes import Process
from support.raw_ids import SIZES, interactions

from ssept_ext import SASREC, IdMap, WarpSampler
from ssept_ext.checkpoint.training_state import TRAINING_FILE, load_training, save_training
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training import loop
from ssept_ext.training.interruption import TrainingInterrupted
from ssept_ext.training.loop import train_model

pytestmark = pytest.mark.usefixtures("_one_thread")

STEPS_IN_AN_EPOCH = 4
EPOCHS = 6


class DeadlySampler(WarpSampler):
    """Has signals sent to the process when batch `last` is asked for."""

    last, signals = -1, ()

    def next_packed(self):
        if self.tell() == self.last:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return super().next_packed()


def train(folder, last=-1, signals=(signal.SIGKILL,), epochs=EPOCHS, **changes):
    """Train with everything that is random: dropout, SSE, windows, two threads that draw."""
    torch.set_num_threads(1)
    dataset = synthetic(num_users=40, min_events=8, max_events=20)
    torch.manual_seed(0)
    model = model_for(
        dataset,
        embedding_dim=8,
        dropout_rate=0.2,
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
        negatives_per=changes.pop("negatives_per", "event"),
    ) as sampler:
        sampler.last, sampler.signals = last, signals
        history = train_model(
            model,
            dataset,
            sampler,
            epochs,
            batch_size=10,
            learning_rate=changes.pop("learning_rate", 0.01),
            val_epoch=2,
            verbose=False,
            callbacks=changes.pop("callbacks", ()),
            restore_best=True,
            **changes,
            checkpoint=folder,
        )
    figures = {name: history[name] for name in ("loss", "val_ndcg", "val_hr")}
    return figures, model.state_dict()


def train_in_a_process(folder, last, number):
    code = f"from test_resume import train; train({str(folder)!r}, {last}, [{int(number)}])"
    with Process(code, folder) as process:
        return process.wait(timeout=120)


def assert_same(left, right):
    assert left[0] == right[0]
    assert all(torch.equal(left[1][name], right[1][name]) for name in right[1])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    figures, parameters = train(tmp_path_factory.mktemp("uninterrupted"))
    assert len(figures["loss"]) == EPOCHS
    return figures, parameters


def test_a_run_killed_and_told_to_end_ends_bit_for_bit_as_one_that_was_not(tmp_path, uninterrupted):
    assert train_in_a_process(tmp_path, 2 * STEPS_IN_AN_EPOCH + 1, signal.SIGKILL) == -9
    assert load_training(tmp_path).next_batch == 2 * STEPS_IN_AN_EPOCH
    last = 5 * STEPS_IN_AN_EPOCH - 3
    assert train_in_a_process(tmp_path, last, signal.SIGTERM) == 143
    assert load_training(tmp_path).next_batch == last + 1

    assert_same(train(tmp_path), uninterrupted)


def test_a_run_is_interrupted_after_any_step(tmp_path, uninterrupted):
    lasts = (0, 2 * STEPS_IN_AN_EPOCH + 1, 3 * STEPS_IN_AN_EPOCH - 1, 4 * STEPS_IN_AN_EPOCH - 1)
    for last, number in zip(lasts, [signal.SIGTERM, signal.SIGINT] * 2, strict=True):
        with pytest.raises(TrainingInterrupted) as caught:
            train(tmp_path, last, [number])

        assert caught.value.code == 128 + number
        state = load_training(tmp_path)
        assert state.epoch * STEPS_IN_AN_EPOCH + len(state.losses) == state.next_batch == last + 1

    assert_same(train(tmp_path), uninterrupted)


def test_a_validation_is_finished_before_the_training_is_interrupted(
    tmp_path, uninterrupted, monkeypatch
):
    honest = loop.rank_candidates

    def measure(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rank_candidates", measure)
        with pytest.raises(TrainingInterrupted, match="SIGTERM after epoch 2 of 6"):
            train(tmp_path)
    state = load_training(tmp_path)
    assert (state.epoch, len(state.history["val_ndcg"])) == (2, 1)

    assert_same(train(tmp_path), uninterrupted)


def test_seconds_of_an_interrupted_epoch_are_counted_once(tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, 2 * STEPS_IN_AN_EPOCH + 1, [signal.SIGTERM])
    state = load_training(tmp_path)
    save_training(replace(state, seconds=1000.0), tmp_path)
    seconds = []

    train(tmp_path, callbacks=[lambda p: seconds.append(p.epochs[-1].seconds)])

    assert [1000 < s < 2000 for s in seconds] == [True] * 4  # of epochs 3 to 6


def test_a_second_ctrl_c_ends_at_once(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 2 * STEPS_IN_AN_EPOCH + 1, [signal.SIGINT] * 2)
    assert load_training(tmp_path).next_batch == 2 * STEPS_IN_AN_EPOCH

    assert_same(train(tmp_path), uninterrupted)


def test_supervisors_may_send_sigterm_again(tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, 1, [signal.SIGTERM] * 2)

    assert load_training(tmp_path).next_batch == 2


@pytest.mark.parametrize("last", [-1, 1])
def test_signals_are_handled_as_before_afterwards(tmp_path, last):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    with contextlib.suppress(TrainingInterrupted):
        train(tmp_path, last, [signal.SIGTERM], epochs=1)

    assert [signal.getsignal(number) for number in numbers] == before


def test_ignored_signals_stay_ignored(tmp_path, uninterrupted):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert_same(train(tmp_path, 1, [signal.SIGINT]), uninterrupted)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_trains_without_handlers(tmp_path, uninterrupted):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path)))
    thread.start()
    thread.join()

    assert_same(results[0], uninterrupted)


DECAY = {"schedule": "cosine", "warmup_steps": 10}


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam", "rowwise_adagrad"])
@pytest.mark.parametrize("options", [DECAY, {"negatives_per": "sequence"}], ids=["decay", "shared"])
def test_training_by_other_options_goes_on_bit_for_bit(tmp_path, options, table_optimizer):
    options = options | {"table_optimizer": table_optimizer}
    uninterrupted = train(tmp_path / "uninterrupted", **options)
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, 2 * STEPS_IN_AN_EPOCH + 1, [signal.SIGTERM], **options)

    assert_same(train(tmp_path, **options), uninterrupted)


def test_a_run_killed_before_its_first_epoch_ends_starts_anew(tmp_path, uninterrupted):
    assert train_in_a_process(tmp_path, 1, signal.SIGKILL) == -9

    assert_same(train(tmp_path), uninterrupted)


def test_a_finished_run_returns_at_once_with_its_best_model(tmp_path, uninterrupted):
    train(tmp_path)

    assert_same(train(tmp_path, last=EPOCHS * STEPS_IN_AN_EPOCH), uninterrupted)


def test_a_finished_run_goes_on_for_more_epochs(tmp_path, uninterrupted):
    train(tmp_path, epochs=4)

    assert_same(train(tmp_path), uninterrupted)


def test_a_run_that_ran_out_of_patience_stays_ended(tmp_path, monkeypatch):
    measured = iter([(0.5, 0.5), (0.4, 0.5), (0.3, 0.5)])
    monkeypatch.setattr("ssept_ext.training.loop.rank_candidates", lambda *_: next(measured))
    first = train(tmp_path, patience=1)

    assert len(first[0]["loss"]) == 4
    assert_same(train(tmp_path, patience=1), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, "learning_rate = 0.01, got 0.02"),
        ({"seed": 4}, "seed of the sampler = 3, got 4"),
        ({"window_sampling_prob": 0.6}, "window_sampling_prob of the sampler = 0.5, got 0.6"),
        ({"negatives_per": "batch"}, "negatives_per of the sampler = 'event', got 'batch'"),
        ({"loss": "bpr"}, "loss = 'bce', got 'bpr'"),
        ({"validation": "full"}, "validation = 'sampled', got 'full'"),
        ({"schedule": "cosine"}, "schedule = 'constant', got 'cosine'"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changes, message):
    train(tmp_path, epochs=1)

    with pytest.raises(ValueError, match=f"was saved by a training with {message}"):
        train(tmp_path, **changes)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    rows = {f"user {u}": [f"item {i}" for i in range(u, u + 6)] for u in range(12)}
    sizes = SIZES | {"num_epochs": 1, "batch_size": 8, "checkpoint": tmp_path}
    events = interactions(rows)
    SASREC.fit(events, **sizes)
    others = {
        "got data of 12 users, 72 events": interactions(dict(reversed(rows.items()))),
        "got data of 12 users, 73 events": interactions(
            rows | {"user 0": [*rows["user 0"], "item 9"]}
        ),
        "with other raw ids": replace(events, user_ids=IdMap([f"u{u}" for u in range(12)], "user")),
    }

    for message, other in others.items():
        with pytest.raises(ValueError, match=f"belongs to data of 12 users, 72 events .*{message}"):
            SASREC.fit(other, **sizes)
    with pytest.raises(ValueError, match="split otherwise into training and validation"):
        SASREC.fit(events, hold_out=False, **sizes)
    state = load_training(tmp_path)
    old = state.settings.keys() - {"data", "histories of the sampler"}
    save_training(replace(state, settings={n: state.settings[n] for n in old}), tmp_path)
    assert SASREC.fit(events, **sizes).item_num == 17  # of a version that kept no digests


def test_a_sampler_of_other_histories_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    state = load_training(tmp_path)
    settings = state.settings | {"histories of the sampler": "0123456789abcdef"}
    save_training(replace(state, settings=settings), tmp_path)

    with pytest.raises(ValueError, match="with histories of the sampler = '0123456789abcdef', got"):
        train(tmp_path)


def test_a_schedule_that_ends_cannot_be_extended(tmp_path):
    train(tmp_path, epochs=2, schedule="cosine")

    with pytest.raises(ValueError, match="was saved by a training with num_epochs = 2, got 3"):
        train(tmp_path, epochs=3, schedule="cosine")


def test_a_sampler_that_cannot_seek_is_refused(tmp_path):
    dataset = synthetic(num_users=40, min_events=8, max_events=20)
    model = model_for(dataset)

    with pytest.raises(ValueError, match="checkpoint needs a sampler with seek and tell"):
        train_model(model, dataset, SimpleNamespace(next_batch=list), checkpoint=tmp_path)


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

    monkeypatch.setattr("ssept_ext.utils.tensor_files.save_file", fail)
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


@pytest.mark.parametrize("place", [20, 0.5, -1], ids=["header", "middle", "end"])
def test_one_changed_bit_of_a_state_is_noticed(tmp_path, place):
    train(tmp_path, epochs=1)
    path = tmp_path / TRAINING_FILE
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"{TRAINING_FILE} (is damaged|has format)"):
        train(tmp_path)


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    train(tmp_path, epochs=1)
    for name in (f".{TRAINING_FILE}.x1.ssept_ext", f".{TRAINING_FILE}.backup"):
        (tmp_path / name).mkdir()

    save_training(load_training(tmp_path), tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{TRAINING_FILE}.backup", TRAINING_FILE]


def test_a_state_of_another_format_is_named(tmp_path, monkeypatch):
    train(tmp_path, epochs=1)
    monkeypatch.setattr("ssept_ext.checkpoint.training_state.TRAINING_FORMAT", 3)

    with pytest.raises(ValueError, match=f"{TRAINING_FILE} has format 2, this version reads 3"):
        train(tmp_path)


def test_a_training_of_before_there_was_an_option_goes_on_by_the_default(tmp_path, uninterrupted):
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, 1, [signal.SIGTERM])
    state = load_training(tmp_path)
    for name in ("validation", "logq_correction", "time_bias", "negatives_per of the sampler"):
        del state.settings[name]
    save_training(state, tmp_path)

    with pytest.raises(ValueError, match="with validation = 'sampled', got 'full'"):
        train(tmp_path, validation="full")
    assert_same(train(tmp_path), uninterrupted)


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "float32")])
def test_a_training_of_before_there_was_a_precision_goes_on_in_its_own(tmp_path, bf16, precision):
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, 1, [signal.SIGTERM], precision=precision)
    state = load_training(tmp_path)
    del state.settings["precision"]
    save_training(replace(state, settings=state.settings | {"bf16": bf16}), tmp_path)

    with pytest.raises(ValueError, match=f"with precision = '{precision}', got 'tf32'"):
        train(tmp_path, precision="tf32")
    figures, _ = train(tmp_path, bf16=bf16)

    assert len(figures["loss"]) == EPOCHS
