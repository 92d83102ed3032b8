"""Two processes that train one model do what one process does."""

from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.factories import model_for
from support.processes import processes

from ssept_ext import SSEPT, SASRecDataSet, WarpSampler, distributed
from ssept_ext.data.synthetic import synthetic
from ssept_ext.evaluation import Popularity, evaluate_ranks, full
from ssept_ext.training.callbacks import csv_log, tensorboard_log
from ssept_ext.training.loop import train_model

pytestmark = pytest.mark.usefixtures("_one_thread")


NUM_USERS = 20


TIMEOUT_SECONDS = 20


def make_dataset():
    return synthetic(num_users=NUM_USERS, min_events=4, max_events=20)


def features():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(make_dataset().itemnum + 1, 3, generator=generator)
    rows[0] = 0
    return rows


# Arguments of the model, of the sampler and of the training.
CASES = {
    "bce": ({}, {}, {}),
    "gbce, with replacing": ({"sse_item_prob": 0.3, "sse_target_prob": 0.2}, {}, {"loss": "gbce"}),
    "bpr, with L2": ({"l2_reg": 0.1}, {"num_negatives": 2}, {"loss": "bpr"}),
    "sampled softmax by popularity, clipped": (
        {"sse_user_prob": 0.9, "sse_item_prob": 0.3, "sse_joint": True},
        {"num_negatives": 3, "popularity_exponent": 0.75},
        {"loss": "sampled_softmax", "max_grad_norm": 0.01},
    ),
    "negatives of a sequence": (
        {"sse_target_prob": 0.2},
        {"num_negatives": 9, "negatives_per": "sequence"},
        {"loss": "bpr"},
    ),
    "negatives of the batch, lazy Adam": (
        {},
        {"num_negatives": 9, "negatives_per": "batch", "popularity_exponent": 0.5},
        {"loss": "sampled_softmax", "table_optimizer": "lazy_adam"},
    ),
    "lazy Adam, clipped": (
        {"sse_user_prob": 0.9, "l2_reg": 0.1},
        {},
        {"table_optimizer": "lazy_adam", "max_grad_norm": 0.01},
    ),
    "features of items": ({"item_features": features()}, {}, {}),
    "features of items, lazy Adam": (
        {"item_features": features()},
        {"num_negatives": 2},
        {"table_optimizer": "lazy_adam"},
    ),
    "two tables of items, lazy Adam": (
        {"tie_item_embeddings": False, "sse_item_prob": 0.3},
        {"num_negatives": 2},
        {"table_optimizer": "lazy_adam"},
    ),
    "two tables of items, with L2": ({"tie_item_embeddings": False, "l2_reg": 0.1}, {}, {}),
    "softmax over a window": (
        {"sse_user_prob": 0.5},
        {"window_sampling_prob": 0.5},
        {"loss": "softmax"},
    ),
}


def make_model(seed=0, **arguments):
    torch.manual_seed(seed)
    return model_for(make_dataset(), **arguments).double()


def make_sampler(batch_size=NUM_USERS, seed=3, **arguments):
    dataset = make_dataset()
    sizes = (dataset.usernum, dataset.itemnum, batch_size, 6)
    return WarpSampler(dataset.user_train, *sizes, seed=seed, **arguments)


def train(model, sampler, batch_size=NUM_USERS, epochs=1, dataset=None, **arguments):
    settings = {"learning_rate": 0.01, "verbose": False, **arguments}
    with sampler:
        history = train_model(
            model, dataset or make_dataset(), sampler, epochs, batch_size, **settings
        )
    del history["seconds"]
    return history


def one_step(case):
    """A training of one step: its loss, its gradients, and the parameters it leaves."""
    model_arguments, sampler_arguments, options = CASES[case]
    model = make_model(**model_arguments)
    gradients = {}

    def note(progress):
        # Tables of which only rows are trained have none.
        named = progress.model.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    history = train(model, make_sampler(**sampler_arguments), callbacks=[note], **options)
    return history["loss"], gradients, model.state_dict()


def many_steps():
    """All that must be decided alike: schedule, clipping, patience, the best model; with dropout."""
    model = make_model(dropout_rate=0.3, sse_item_prob=0.2)
    history = train(
        model,
        make_sampler(batch_size=4),
        batch_size=4,
        epochs=30,
        val_epoch=1,
        eval_batch_size=8,
        schedule="cosine",
        warmup_steps=3,
        max_grad_norm=0.1,
        patience=2,
        restore_best=True,
    )
    return history, model.state_dict()


def metrics():
    model, dataset = make_model(), make_dataset()
    sampled = [model.evaluate(dataset, seed=5, eval_batch_size=size) for size in (3, 256)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full, "USERS_AT_A_TIME", 4)  # so that each process has some
        ranks = [evaluate_ranks(x, dataset).ranks.tolist() for x in (model, Popularity(dataset))]
    return (
        sampled,
        model.evaluate_valid(dataset, seed=5),
        astuple(model.evaluate_full(dataset)),
        ranks,
    )


class Recording(SSEPT):
    """Keeps the batches that it is trained on."""

    def training_loss(self, batch, *args, **options):
        self.batches = [*getattr(self, "batches", []), batch]
        return super().training_loss(batch, *args, **options)


def batches_of_an_epoch():
    model = make_model()
    model.__class__ = Recording
    train(model, make_sampler(batch_size=5), batch_size=5)
    return model.batches


def logged_until_process_1_is_content(folder, rank):
    """The epochs that are done when a callback of process 1, and no other, ends the training."""
    history = train(
        make_model(),
        make_sampler(batch_size=4),
        batch_size=4,
        epochs=3,
        callbacks=[
            csv_log(folder / f"metrics-{rank}.csv"),
            tensorboard_log(folder / f"tensorboard-{rank}"),
            lambda progress: rank == 1,
        ],
    )
    return len(history["loss"])


def message_of(error, function):
    try:
        function()
    except error as caught:
        return str(caught)
    return None


def mistakes(rank):
    def nan_in_one_process():
        model = make_model()
        honest, steps = model.training_loss, iter(range(99))
        poison = {1: float("nan")} if rank == 1 else {}
        model.training_loss = lambda *a, **k: honest(*a, **k) * poison.get(next(steps), 1)
        train(model, make_sampler(batch_size=4), batch_size=4)

    return {
        "batch_size": message_of(
            ValueError, lambda: train(make_model(), make_sampler(1), batch_size=1)
        ),
        "sampler": message_of(ValueError, lambda: train(make_model(), make_sampler(seed=rank))),
        "learning_rate": message_of(
            ValueError, lambda: train(make_model(), make_sampler(), learning_rate=0.1 + rank)
        ),
        **{
            name: message_of(
                ValueError,
                lambda changes=changes: train(make_model(**changes), make_sampler()),
            )
            for name in ("l2_reg", "dropout_rate", "sse_item_prob")
            for changes in [{name: 0.5 * rank}]
        },
        "window_sampling_prob": message_of(
            ValueError,
            lambda: train(make_model(), make_sampler(window_sampling_prob=1e-9 * rank)),
        ),
        "hold_out": message_of(
            ValueError,
            lambda: train(
                make_model(),
                make_sampler(),
                dataset=SASRecDataSet(
                    histories=make_dataset().histories("all"), hold_out=rank == 0
                ),
            ),
        ),
        "nan": message_of(FloatingPointError, nan_in_one_process),
        "in process 0": message_of(
            KeyError, lambda: distributed.broadcast_from_rank0(lambda: {}["missing"])
        ),
    }


def work(folder):
    """What each of the two processes does, and keeps for the tests to look at."""
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu"), TIMEOUT_SECONDS):
        rank = dist.get_rank()
        results = {
            "steps": {case: one_step(case) for case in CASES},
            "many": many_steps(),
            "metrics": metrics(),
            "new trials": make_model().evaluate(make_dataset()),
            "batches": batches_of_an_epoch(),
            "mistakes": mistakes(rank),
            "logged": logged_until_process_1_is_content(Path(folder), rank),
        }
        model_arguments, _, options = CASES["gbce, with replacing"]
        other = make_model(seed=rank, **model_arguments)
        train(other, make_sampler(), **options)
        results["begun differently"] = other.state_dict()
    torch.save(results, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    code = f"import test_distributed as t; t.work({str(folder)!r})"
    with processes(2, code, folder) as started:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    loaded = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    logs = {path.stem for path in folder.iterdir() if path.suffix != ".pt"}
    return [{**result, "logs": logs} for result in loaded]


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_two_processes_is_that_of_one(results, case):
    loss, gradients, parameters = one_step(case)

    for result in results:
        their_loss, their_gradients, their_parameters = result["steps"][case]
        assert their_loss == pytest.approx(loss, rel=1e-12)
        largest = max(g.abs().max().item() for g in gradients.values())
        # One process alone trains the tables of a model with features by rows, and then they have no gradient.
        their_gradients = {name: their_gradients[name] for name in gradients}
        torch.testing.assert_close(their_gradients, gradients, rtol=0, atol=1e-14 * largest)
        torch.testing.assert_close(their_parameters, parameters, rtol=1e-9, atol=1e-9)


def test_both_processes_end_with_the_same_model_and_history(results):
    (history, parameters), (other_history, other_parameters) = (r["many"] for r in results)

    assert history == other_history
    assert_equal(parameters, other_parameters)
    assert 3 <= len(history["loss"]) < 30  # patience has ended it
    model = make_model()
    model.load_state_dict(parameters)
    best = model.evaluate_valid(make_dataset(), seed=0)
    assert best[0] == max(history["val_ndcg"])


def test_parameters_and_the_generator_begin_as_those_of_process_0(results):
    _, _, expected = one_step("gbce, with replacing")

    for result in results:
        torch.testing.assert_close(result["begun differently"], expected, rtol=1e-9, atol=1e-9)


def test_the_parts_of_a_batch_are_disjoint_and_make_up_that_of_one_process(results):
    parts = [result["batches"] for result in results]

    with make_sampler(batch_size=5) as sampler:
        for pair in zip(*parts, strict=True):
            whole = sampler.next_packed()
            for name in ("users", "items", "positions", "positives", "negatives"):
                joined = torch.cat([getattr(part, name) for part in pair])
                assert torch.equal(joined, getattr(whole, name)), name
        assert sampler.tell() == 4


def test_evaluation_finds_what_one_process_does(results):
    assert [result["metrics"] for result in results] == [metrics()] * 2


def test_a_callback_of_any_process_ends_the_training_and_process_0_logs(results):
    assert [result["logged"] for result in results] == [1, 1]
    assert results[0]["logs"] == {"metrics-0", "tensorboard-0"}


def test_trials_without_a_seed_are_the_same_everywhere(results):
    assert results[0]["new trials"] == results[1]["new trials"]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("batch_size", "batch_size must be at least 2, the number of processes that share a batch"),
        ("sampler", "the sampler's batch (give it a seed) must be the same in every process, got"),
        (
            "learning_rate",
            "learning_rate must be the same in every process, got 0.1 in process 0 and 1.1 in process 1",
        ),
        *(
            (name, f"{name} must be the same in every process, got 0.0 in process 0 and 0.5")
            for name in ("l2_reg", "dropout_rate", "sse_item_prob")
        ),
        ("window_sampling_prob", "window_sampling_prob of the sampler must be the same in every"),
        ("hold_out", "data must be the same in every process"),
        ("nan", "the loss is nan at step 2 of epoch 1"),
        ("in process 0", "'missing'"),
    ],
)
def test_a_mistake_is_the_same_error_in_both_processes(results, mistake, message):
    first, second = (result["mistakes"][mistake] for result in results)

    assert first == second
    assert message in first
