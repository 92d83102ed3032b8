"""Two processes that train one model do what one process does."""

from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.factories import model_for
from support.processes import two_processes

from ssept_ext import SSEPT, WarpSampler, distributed
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training.callbacks import csv_log, tensorboard_log
from ssept_ext.training.loop import train_model

pytestmark = pytest.mark.usefixtures("_one_thread")


NUM_USERS = 20


TIMEOUT_SECONDS = 20


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
    "softmax over a window": (
        {"sse_user_prob": 0.5},
        {"window_sampling_prob": 0.5},
        {"loss": "softmax"},
    ),
}


def make_dataset():
    return synthetic(num_users=NUM_USERS, min_events=4, max_events=20)


def make_model(seed=0, **arguments):
    torch.manual_seed(seed)
    return model_for(make_dataset(), **arguments).double()


def make_sampler(batch_size=NUM_USERS, seed=3, **arguments):
    dataset = make_dataset()
    sizes = (dataset.usernum, dataset.itemnum, batch_size, 6)
    return WarpSampler(dataset.user_train, *sizes, seed=seed, **arguments)


def train(model, sampler, batch_size=NUM_USERS, epochs=1, **arguments):
    settings = {"learning_rate": 0.01, "verbose": False, **arguments}
    with sampler:
        history = train_model(model, make_dataset(), sampler, epochs, batch_size, **settings)
    del history["seconds"]
    return history


def one_step(case):
    """A training of one step: its loss, its gradients, and the parameters it leaves."""
    model_arguments, sampler_arguments, options = CASES[case]
    model = make_model(**model_arguments)
    gradients = {}

    def note(progress):
        gradients.update({name: p.grad.clone() for name, p in progress.model.named_parameters()})

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
    return sampled, model.evaluate_valid(dataset, seed=5), astuple(model.evaluate_full(dataset))


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
    with two_processes(
        f"import test_distributed as t; t.work({str(folder)!r})", folder
    ) as processes:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
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
        ("nan", "the loss is nan at step 2 of epoch 1"),
        ("in process 0", "'missing'"),
    ],
)
def test_a_mistake_is_the_same_error_in_both_processes(results, mistake, message):
    first, second = (result["mistakes"][mistake] for result in results)

    assert first == second
    assert message in first


def packed(*lengths):
    torch.manual_seed(0)
    ids = torch.randint(1, 31, (sum(lengths), 3))
    return PackedBatch(
        users=torch.arange(1, len(lengths) + 1),
        items=ids[:, 0].contiguous(),
        positions=torch.cat([torch.arange(100 - n, 100) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        positives=ids[:, 1] * (torch.rand(sum(lengths)) < 0.8),
        negatives=ids[:, 2:],
    )


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((3, 3, 3, 3), [[3], [3], [3], [3]]),
        ((1, 2, 3, 4, 5, 5), [[1, 2, 3], [4], [5], [5]]),
        ((97, 1, 1, 1, 1), [[97], [1], [1], [1, 1]]),
        ((1, 1, 1, 1, 97), [[1, 1], [1], [1], [97]]),
        ((0, 0, 0, 0), [[0], [0], [0], [0]]),
    ],
)
def test_parts_have_a_sequence_each_and_about_as_many_tokens(lengths, expected):
    parts = [data_parallel.shard(packed(*lengths), process, 4) for process in range(4)]

    assert [part.cu_seqlens.diff().tolist() for part in parts] == expected
    assert [part.max_seqlen for part in parts] == [max(group) for group in expected]
    assert all(part.cu_seqlens[0] == 0 for part in parts)


def test_the_shares_of_parts_are_those_of_their_targets():
    batch = packed(5, 1, 9, 3)

    parts = [data_parallel.shard(batch, process, 3) for process in range(3)]

    targets = int(batch.positives.count_nonzero())
    assert [part.target_share * targets for part in parts] == pytest.approx(
        [int(part.positives.count_nonzero()) for part in parts]
    )
    assert sum(part.target_share for part in parts) == pytest.approx(1)


@pytest.mark.parametrize("sse", [SSE(0.9, 0.5, joint=True), SSE(0.9, 0.5, 0.5)])
def test_ids_are_replaced_in_parts_as_in_the_whole_batch(sse):
    batch, seed = packed(5, 1, 9, 3), torch.tensor([7])

    parts = [
        replace_ids(data_parallel.shard(batch, process, 3), sse, 9, 30, seed)
        for process in range(3)
    ]

    whole = replace_ids(batch, sse, 9, 30, seed)
    for name in ("users", "items", "positives"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name)), name
        assert not torch.equal(joined, getattr(batch, name)), name


def test_every_process_drops_out_by_a_seed_of_its_own():
    model = make_model(dropout_rate=0.5)
    with make_sampler() as sampler:
        part = data_parallel.shard(sampler.next_packed(), 0, 1)

    losses = [
        model.training_loss(replace(part, process=process), seed=torch.tensor([7])).item()
        for process in (0, 0, 1)
    ]

    assert losses[0] == losses[1] != losses[2]


def test_on_a_gpu_shared_steps_are_eager():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])

    with pytest.warns(UserWarning, match="takes eager steps, because 2 processes share them"):
        step = cuda_graph.training_step(None, optimizer, torch.device("cuda"), 6, num_processes=2)

    assert not isinstance(step, cuda_graph.CudaGraphStep)


@pytest.fixture
def _second_of_four(monkeypatch):
    """The environment that torchrun makes on a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    variables = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_second_of_four")
def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")

    device = main._choose_device(argparse.Namespace(device=None, backend="auto"))

    assert device == torch.device("cuda", 1)


@pytest.mark.usefixtures("_second_of_four")
def test_more_processes_than_gpus_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "2")

    assert main.main(["train"]) == 2

    assert capsys.readouterr().err == (
        "ssept process 1 of 4: error: LOCAL_RANK must be below 2, the number of CUDA devices, got 2: "
        "start fewer processes with --nproc-per-node\n"
    )


def test_other_errors_are_not_taken_for_lost_processes():
    with (
        pytest.raises(RuntimeError, match="shapes do not fit"),
        distributed.raise_if_peer_lost(),
    ):
        raise RuntimeError("shapes do not fit")


class DeadlySampler(WarpSampler):
    """Kills process 0 where batch 5 is asked for: 2 are an epoch."""

    def next_packed(self):
        if self.tell() == 5 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().next_packed()


def command_line(command, *options):
    return [command, *options, "--device", "cpu", "--timeout", str(TIMEOUT_SECONDS)]


class TerminatingSampler(WarpSampler):
    """Asks process 1, and no other, to end where batch 5 is asked for."""

    def next_packed(self):
        if self.tell() == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().next_packed()


def train_with(sampler, data):
    main.WarpSampler = sampler
    sys.exit(main.main(command_line("train", *options_of_run(data))))


def options_of_run(data, out="run"):
    return [
        *("--data", data, "--out", out, "--epochs", "4", "--val-epoch", "1", "--batch-size", "10"),
        *("--seq-max-len", "6", "--num-blocks", "1", "--item-embedding-dim", "4"),
        *("--dropout-rate", "0", "--sse-item-prob", "0.2", "--num-neg-test", "5"),
    ]


def figures_of(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return [[float(row[name]) for name in ("loss", "val_ndcg", "val_hr")] for row in rows]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{u} {i}\n" for u in range(1, NUM_USERS + 1) for i in rng.permutation(30)[:9] + 1]
    path = tmp_path / "events.txt"
    path.write_text("".join(lines))
    return str(path)


def test_where_one_process_is_killed_the_other_ends_and_the_run_goes_on(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with two_processes(
        f"import test_distributed as t; t.train_with(t.DeadlySampler, {data!r})", tmp_path, **pipes
    ) as (killed, left):
        assert killed.wait(timeout=120) == -signal.SIGKILL
        output, error = left.communicate(timeout=TIMEOUT_SECONDS + 10)

    assert left.returncode == 1
    assert output == ""  # process 0 prints
    assert error.splitlines()[-1].startswith(
        "ssept process 1 of 2: error: another process has ended or does not answer ("
    )
    assert "Traceback" not in error
    assert load_training("run").epoch == 2
    shutil.copytree("run", "copy")

    assert main.main(command_line("train", *options_of_run(data, "whole"))) == 0
    assert main.main(command_line("resume", "run")) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = subprocess.run(
        [*torchrun, "-m", "ssept_ext", *command_line("resume", "copy")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert both.stdout.count("popularity") == 1
    for run in ("run", "copy"):
        assert figures_of(Path(run)) == pytest.approx(np.array(figures_of(Path("whole"))), rel=1e-3)
        assert sorted(p.suffix for p in Path(run).iterdir()) == sorted(
            p.suffix for p in Path("whole").iterdir()
        )


def test_a_signal_to_one_process_ends_all_after_the_same_step_and_the_run_goes_on(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with two_processes(
        f"import test_distributed as t; t.train_with(t.TerminatingSampler, {data!r})",
        tmp_path,
        stderr=subprocess.PIPE,
    ) as processes:
        errors = [process.communicate(timeout=120)[1] for process in processes]

    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
    assert ["to continue: ssept resume run" in error for error in errors] == [True, False]
    state = load_training("run")
    assert (state.epoch, len(state.losses), state.next_batch) == (2, 2, 6)

    assert main.main(command_line("resume", "run")) == 0
    assert main.main(command_line("train", *options_of_run(data, "whole"))) == 0

    assert figures_of(Path("run")) == pytest.approx(np.array(figures_of(Path("whole"))), rel=1e-3)
