"""A training with sharded tables that was killed, or told to end, goes on as if it had not been."""

import os
import shutil
import signal
import sys

import pytest
import torch
import torch.distributed as dist
from support.checkpoints import named
from support.factories import model_for
from support.processes import processes

from ssept_ext import WarpSampler, distributed
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training import run
from ssept_ext.training.interruption import TrainingInterrupted

pytest.importorskip("torchrec")

pytestmark = pytest.mark.usefixtures("_one_thread")

STEPS_IN_AN_EPOCH = 4
EPOCHS = 6
KILLED, TOLD = 2 * STEPS_IN_AN_EPOCH + 1, 5 * STEPS_IN_AN_EPOCH - 3


class DeadlySampler(WarpSampler):
    """Has a signal sent to one process when batch `last` is asked for."""

    last, number, rank = -1, signal.SIGKILL, 0

    def next_packed(self):
        if self.tell() == self.last and distributed.rank() == self.rank:
            os.kill(os.getpid(), self.number)
        return super().next_packed()


def train(folder, last=-1, number=signal.SIGKILL, epochs=EPOCHS, **changes):
    """Train with everything that is random or changes, on sharded tables: the model and its history."""
    from ssept_ext.large_tables import ShardedSSEPT

    dataset = synthetic(num_users=40, min_events=8, max_events=20)
    torch.manual_seed(0)
    model = model_for(
        dataset,
        ShardedSSEPT,
        embedding_dim=6,
        dropout_rate=0.2,
        sse_user_prob=0.5,
        sse_item_prob=0.1,
        sse_joint=True,
    )
    sizes = (dataset.usernum, dataset.itemnum, 10, 6, 2)
    with DeadlySampler(dataset.user_train, *sizes, seed=3, window_sampling_prob=0.5) as sampler:
        sampler.last, sampler.number = last, number
        sampler.rank = distributed.size() - 1  # not the one that writes
        options = {
            "table_optimizer": "rowwise_adagrad",
            "schedule": "cosine",
            "warmup_steps": 10,
            "val_epoch": 2,
            "validation": "full",
            "restore_best": True,
            "verbose": False,
            "checkpoint": folder,
        }
        history = model.train_model(dataset, sampler, epochs, 10, 0.1, **options | changes)
    return model, {name: history[name] for name in ("loss", "val_ndcg", "val_hr")}


def in_group(function):
    """Call a function in a process group; end as a program of a user's should."""
    torch.set_num_threads(1)
    try:
        with distributed.process_group(torch.device("cpu"), 60):
            function()
    except distributed.ProcessLostError as error:
        print(error, file=sys.stderr)
        distributed.end_process(3)


def train_in_whole_and_be_killed(folder):
    def work():
        model, history = train(folder / "whole")
        model.save_pretrained(folder / "whole model")
        torch.save(history, folder / f"whole {distributed.rank()}.pt")
        train(folder / "killed", KILLED)

    in_group(work)


def be_told_to_end_and_go_on(folder):
    def work():
        with pytest.raises(TrainingInterrupted) as caught:
            train(folder / "killed", TOLD, signal.SIGTERM)
        assert caught.value.code == 143
        dist.barrier()
        model, history = train(folder / "killed")
        model.save_pretrained(folder / "resumed model")
        torch.save(history, folder / f"resumed {distributed.rank()}.pt")

    in_group(work)


def go_on(folder, name):
    def work():
        model, history = train(folder / name)
        model.save_pretrained(folder / f"{name} model")
        torch.save(history, folder / f"{name} {distributed.rank()}.pt")

    in_group(work)


def call(count, folder, code):
    """Run a function of this file in as many processes, and return their exit codes."""
    code = f"import pathlib, test_large_tables_resume as t; t.{code}"
    with processes(count, code.replace("FOLDER", f"pathlib.Path({str(folder)!r})"), folder) as all_:
        return [process.wait(timeout=240) for process in all_]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a training of two processes that went through, and one of which the last process was killed."""
    folder = tmp_path_factory.mktemp("killed")
    assert call(2, folder, "train_in_whole_and_be_killed(FOLDER)") == [3, -9]
    return folder


def test_a_training_killed_and_told_to_end_ends_bit_for_bit_as_one_that_was_not(killed):
    assert [path.name for path in (killed / "killed").glob("tables-*")] == ["tables-2"]

    assert call(2, killed, "be_told_to_end_and_go_on(FOLDER)") == [0, 0]

    for rank in range(2):
        whole, resumed = (torch.load(killed / f"{name} {rank}.pt") for name in ("whole", "resumed"))
        assert resumed == whole
        assert len(resumed["loss"]) == EPOCHS
    models = [named(killed / f"{name} model") for name in ("whole", "resumed")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_another_number_of_processes_goes_on(killed):
    shutil.copytree(killed / "whole", killed / "other")

    assert call(3, killed, "go_on(FOLDER, 'other')") == [0, 0, 0]

    assert torch.load(killed / "other 0.pt") == torch.load(killed / "whole 0.pt")
    assert named(killed / "other model").read_bytes() == named(killed / "whole model").read_bytes()


@pytest.fixture
def _alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_a_save_that_was_killed_between_its_files_is_forgotten(tmp_path, monkeypatch):
    whole, history = train(tmp_path / "whole")
    saves = iter(range(99))
    honest = run.save_training

    def fail(state, folder):
        if next(saves) == 3:
            raise OSError("killed")
        honest(state, folder)

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_training", fail)
        with pytest.raises(OSError, match="killed"):
            train(tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").glob("tables-*")) == [
        "tables-3",
        "tables-4",
    ]

    model, resumed = train(tmp_path / "killed")

    assert resumed == history
    assert [p.name for p in (tmp_path / "killed").glob("tables-*")] == ["tables-6"]
    for name, (_, rows) in model.shards().items():
        assert torch.equal(rows, whole.shards()[name][1])


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("damage", ["missing", "without metadata", "truncated"])
def test_damaged_tables_are_named(tmp_path, damage):
    train(tmp_path, epochs=1, schedule="constant")
    tables = tmp_path / "tables-1"
    if damage == "missing":
        shutil.rmtree(tables)
    elif damage == "truncated":
        (data,) = tables.glob("*.distcp")
        os.truncate(data, 1000)
    else:
        (tables / ".metadata").unlink()

    with pytest.raises(ValueError, match="tables-1 is missing or damaged: "):
        train(tmp_path, epochs=2, schedule="constant")


@pytest.mark.usefixtures("_alone")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "tables-1").write_text("a file")

    with pytest.raises(OSError, match="tables-1"):
        train(tmp_path, epochs=1)
