"""The training loop, on a stub model with one table and one other weight."""

import math
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssept_ext import SSEPT, SASRecDataSet
from ssept_ext.data.packed import pack
from ssept_ext.evaluation.sampled import evaluate_valid
from ssept_ext.network.losses import bce
from ssept_ext.ops.causal_attention import _matmul_takes_tf32
from ssept_ext.sampling.sampler import WarpSampler
from ssept_ext.training.environment import kept_memory, matmul_precision
from ssept_ext.training.loop import (
    VALIDATION_SEED,
    train_model,
)
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.run import Run

pytestmark = pytest.mark.usefixtures("_one_thread")

NUM_ITEMS, NUM_USERS, LENGTH = 30, 12, 6


class Stub(nn.Module):
    """Scores an item by its vector times that of the token's item, stretched by `stretch`."""

    device = torch.device("cpu")

    def __init__(self, seq_max_len=LENGTH, l2_reg=0.0):
        super().__init__()
        self.item_num, self.seq_max_len, self.num_neg_test = NUM_ITEMS, seq_max_len, 5
        self.l2_reg = l2_reg
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(NUM_ITEMS + 1, 4, generator=generator))
        self.stretch = nn.Parameter(torch.ones(4))
        self.batches = []

    def embedding_tables(self):
        return [self.table]

    def training_loss(self, batch, **options):
        self.loss_options = options
        return bce(self.sampled_logits(batch), batch.positives)

    def sampled_logits(self, batch):
        assert self.training
        self.batches.append(batch)
        items = torch.cat([batch.positives[:, None], batch.negatives], 1)
        hidden = self.table[batch.items] * self.stretch
        return torch.einsum("nd,nkd->nk", hidden, self.table[items])

    def score(self, batch, candidates, user_part=True):
        last = self.table[batch.items[batch.cu_seqlens[1:].long() - 1]] * self.stretch
        return torch.einsum("bd,bcd->bc", last, self.table[candidates])


class PaddedSampler:
    """recommenders' sampler: tuples of NumPy rows, and nothing but `next_batch`."""

    def __init__(self, sampler):
        self.sampler = sampler

    def next_batch(self):
        return zip(*zip(*self.sampler.next_batch(), strict=True), strict=True)


class Interrupted:
    """Passes batches on until `after` of them were taken, then raises `error`."""

    def __init__(self, sampler, after, error):
        self.sampler, self.left, self.error = sampler, after, error

    def next_batch(self):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.sampler.next_batch()


@pytest.fixture
def dataset():
    """12 users with 9 events each in a ring of 30 items."""
    return SASRecDataSet(
        histories={
            u: [(3 * u + t) % NUM_ITEMS + 1 for t in range(9)] for u in range(1, NUM_USERS + 1)
        }
    )


def make_sampler(dataset, maxlen=LENGTH, batch_size=4):
    return WarpSampler(
        dataset.user_train, NUM_USERS, NUM_ITEMS, batch_size=batch_size, maxlen=maxlen, seed=1
    )


def train(model, dataset, sampler=None, **options):
    sampler = sampler or make_sampler(dataset)
    defaults = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.01, "verbose": False}
    return train_model(model, dataset, sampler, **(defaults | options))


def test_training_lowers_the_loss(dataset):
    history = train(Stub(), dataset, num_epochs=30, learning_rate=0.1)

    assert len(history["loss"]) == 30
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["val_ndcg"] == history["val_hr"] == []


def make_ssept():
    return SSEPT(
        item_num=NUM_ITEMS,
        user_num=NUM_USERS,
        seq_max_len=LENGTH,
        num_blocks=1,
        embedding_dim=8,
        conv_dims=[16, 16],
        dropout_rate=0.1,
        num_neg_test=5,
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_sse_pt_learns_the_ring(dataset, device):
    model = make_ssept().to(device)

    with make_sampler(dataset, batch_size=12) as sampler:
        history = model.train_model(
            dataset=dataset,
            sampler=sampler,
            num_epochs=60,
            batch_size=12,
            learning_rate=0.02,
            val_epoch=60,
            verbose=False,
        )

    assert history["loss"][-1] < 0.7 * history["loss"][0]
    ndcg, _ = model.evaluate(dataset, seed=0)
    assert ndcg > 0.8
    assert history["val_ndcg"][0] > 0.8


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 3), (5, 2), (12, 1), (13, 1), (1000, 1)])
def test_an_epoch_is_users_over_batch_size_steps_and_at_least_one(dataset, batch_size, steps):
    model = Stub()

    train(model, dataset, num_epochs=2, batch_size=batch_size)

    assert len(model.batches) == 2 * steps
    assert {len(batch.users) for batch in model.batches} == {4}  # the sampler's batch size


@pytest.mark.parametrize(
    ("l2_reg", "options"),
    [
        (0.0, {}),
        (0.1, {}),
        (0.0, {"adam_betas": (0.5, 0.6)}),
        (0.1, {"max_grad_norm": 0.01}),
        (0.0, {"warmup_steps": 2}),
        (0.0, {"schedule": "cosine", "warmup_steps": 2}),
    ],
    ids=str,
)
def test_a_step_is_that_of_adam_with_the_l2_term_of_the_tables_only(dataset, l2_reg, options):
    model, expected = Stub(l2_reg=l2_reg), Stub()
    history = train(model, dataset, num_epochs=1, batch_size=2, **options)

    betas = options.get("adam_betas", (0.9, 0.999))
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.01, betas=betas, eps=1e-7)
    factors = [1.0] * 6
    if "warmup_steps" in options:
        factors[0] = 0.5
    if "schedule" in options:
        factors[2:] = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    losses = []
    for batch, factor in zip(model.batches, factors, strict=True):
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        logits = expected.sampled_logits(batch)
        target = batch.positives != 0
        loss = (F.softplus(-logits[target, 0]) + F.softplus(logits[target, 1])).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        limit = options.get("max_grad_norm")
        if limit is None:
            (loss + 0.5 * l2_reg * expected.table.square().sum()).backward()
        else:  # clips the gradient of the data; Adam adds that of the L2 term
            loss.backward()
            gradients = [expected.table.grad, expected.stretch.grad]
            norm = sum(g.square().sum() for g in gradients) ** 0.5
            assert norm > limit
            for gradient in gradients:
                gradient *= limit / norm
            expected.table.grad += l2_reg * expected.table.detach()
        optimizer.step()

    assert len(losses) == 6
    assert history["loss"] == pytest.approx([np.mean(losses)], rel=1e-5)
    torch.testing.assert_close(model.table, expected.table, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.stretch, expected.stretch, rtol=1e-4, atol=1e-6)


def test_packed_and_padded_samplers_train_the_same_model(dataset):
    packed, padded = Stub(), Stub()

    train(packed, dataset, make_sampler(dataset))
    train(padded, dataset, PaddedSampler(make_sampler(dataset)))

    assert torch.equal(packed.table, padded.table)


@pytest.mark.parametrize("maxlen", [3, LENGTH, 10])
@pytest.mark.parametrize("wrap", [lambda sampler: sampler, PaddedSampler], ids=["packed", "padded"])
def test_a_sampler_of_another_length_is_aligned_at_the_newest_event(dataset, maxlen, wrap):
    model = Stub()

    train(model, dataset, wrap(make_sampler(dataset, maxlen)), num_epochs=1, batch_size=12)

    (batch,) = model.batches
    users, *sequences = make_sampler(dataset, maxlen).next_batch()
    fitted = [np.hstack([np.zeros((4, LENGTH), int), ids])[:, -LENGTH:] for ids in sequences]
    expected = pack(torch.from_numpy(users), *map(torch.from_numpy, fitted))
    for field in ("users", "items", "positions", "cu_seqlens", "positives", "negatives"):
        assert torch.equal(getattr(batch, field), getattr(expected, field)), field
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == expected.max_seqlen


def test_several_negatives_for_each_event(dataset):
    model = Stub()
    sampler = WarpSampler(
        dataset.user_train, NUM_USERS, NUM_ITEMS, batch_size=4, maxlen=3, seed=1, num_negatives=2
    )

    train(model, dataset, sampler, num_epochs=1)

    assert {batch.negatives.shape[1] for batch in model.batches} == {2}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (([1], [[0, 1.5]], [[0, 2]], [[0, 3]]), "input_seq as a 2-dimensional array of integers"),
        (([1], [0, 1], [[0, 2]], [[0, 3]]), r"input_seq .* got shape \(2,\)"),
        (([[1, 2]], [[0, 1]], [[0, 2]], [[0, 3]]), r"users as a 1-dimensional .* shape \(1, 2\)"),
        (([1, 2], [[0, 1]], [[0, 2]], [[0, 3]]), "2 users with sequences of shapes"),
        (([1], [[0, 1]], [[0, 2]], [[3]]), r"shapes \(1, 2\), \(1, 2\), \(1, 1\)"),
    ],
)
def test_a_malformed_batch_is_an_error(dataset, batch, message):
    sampler = SimpleNamespace(next_batch=lambda: batch)

    with pytest.raises(ValueError, match=message):
        train(Stub(), dataset, sampler)


def test_validation_every_val_epoch_on_the_same_candidates(dataset):
    model = Stub()

    history = train(model, dataset, num_epochs=5, val_epoch=2)

    assert len(history["loss"]) == 5
    assert len(history["val_ndcg"]) == len(history["val_hr"]) == 2
    history = train(model, dataset, num_epochs=1, val_epoch=1)
    last = (history["val_ndcg"][-1], history["val_hr"][-1])
    assert last == evaluate_valid(model, dataset, seed=VALIDATION_SEED)


def test_nobody_to_validate_on_is_an_error_before_training(dataset):
    model = Stub()
    dataset.user_valid = {user: [] for user in dataset.user_train}

    with pytest.raises(ValueError, match="no user with a training event and a valid item"):
        train(model, dataset, val_epoch=1)

    assert model.batches == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_gets_its_mode_back(dataset, training):
    model = Stub().train(training)

    train(model, dataset, val_epoch=1)

    assert model.training is training


def test_ctrl_c_returns_the_finished_epochs(dataset, capsys):
    model = Stub().eval()
    sampler = Interrupted(make_sampler(dataset), after=7, error=KeyboardInterrupt())

    history = train(model, dataset, sampler, num_epochs=9, verbose=True)

    assert len(history["loss"]) == 2  # of 3 steps each
    assert not model.training
    assert "interrupted in epoch 3 of 9" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(dataset, value):
    model = Stub()
    honest = model.sampled_logits
    model.sampled_logits = lambda batch: honest(batch) * (value if len(model.batches) == 5 else 1)

    with pytest.raises(FloatingPointError, match="step 2 of epoch 2"):
        train(model, dataset, num_epochs=9)

    assert model.training


def test_the_progress_bar_shows_loss_speed_and_validation(dataset, capfd):
    history = train(Stub(), dataset, num_epochs=1, val_epoch=1, verbose=True)

    error = capfd.readouterr().err
    assert "epoch 1/1" in error
    assert f"loss {history['loss'][0]:.4f}" in error
    assert "samples/s" in error
    assert f"valid NDCG@10 {history['val_ndcg'][0]:.4f}, HR@10 {history['val_hr'][0]:.4f}" in error


def test_verbose_false_is_silent(dataset, capfd):
    sampler = Interrupted(make_sampler(dataset), after=5, error=KeyboardInterrupt())

    train(Stub(), dataset, sampler, num_epochs=3, val_epoch=1, verbose=False)

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("popularity_exponent", [0.0, 0.5])
def test_sampled_softmax_corrects_for_how_the_sampler_draws(dataset, popularity_exponent):
    model = Stub()
    sampler = WarpSampler(
        dataset.user_train,
        NUM_USERS,
        NUM_ITEMS,
        batch_size=4,
        maxlen=3,
        seed=1,
        popularity_exponent=popularity_exponent,
    )

    train(model, dataset, sampler, num_epochs=1, loss="sampled_softmax")

    assert model.loss_options["loss"] == "sampled_softmax"
    log_probs = model.loss_options["negative_log_probs"]
    if popularity_exponent:
        assert torch.equal(log_probs, torch.from_numpy(sampler.negative_log_probs).float())
    else:
        assert log_probs is None


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "gbce", "gbce_t": 0.5},
        {"loss": "bpr"},
        {"loss": "sampled_softmax"},
        {"loss": "softmax"},
        {"bf16": True},
        {"loss": "softmax", "precision": "bf16", "max_grad_norm": 1.0},
    ],
    ids=str,
)
def test_every_loss_and_bfloat16_learn_the_ring_by_keywords_of_train_model(dataset, options):
    model = make_ssept()

    with make_sampler(dataset, batch_size=12) as sampler:
        history = model.train_model(
            dataset, sampler, 60, 12, 0.02, val_epoch=60, verbose=False, **options
        )

    assert history["val_ndcg"][0] > 0.75  # 0.6 before training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bfloat16_reaches_the_hidden_states(dataset):
    model = make_ssept()
    dtypes = {}
    layer = model.encoder.enc_layers[0]
    for name, module in (("mha", layer.mha), ("ffn", layer.ffn)):
        module.register_forward_hook(lambda m, i, out, name=name: dtypes.update({name: out.dtype}))

    train(model, dataset, num_epochs=1, precision="bf16")

    assert dtypes == {"mha": torch.bfloat16, "ffn": torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "float32"),
        ({"bf16": False}, "float32"),
        ({"bf16": True}, "bf16"),
        ({"bf16": True, "precision": "bf16"}, "bf16"),
        ({"bf16": False, "precision": "tf32"}, "tf32"),
    ],
)
def test_bf16_is_an_older_spelling_of_a_precision(given, precision):
    options = TrainingOptions(**given)

    assert options == TrainingOptions(precision=precision)
    assert replace(options, precision="tf32").precision == "tf32"


class Told(Stub):
    """Notes what torch says of the precision of products, in training and in validation."""

    def __init__(self, fails=False):
        super().__init__()
        self.trained, self.validated, self.fails = set(), set(), fails

    def training_loss(self, batch, **options):
        self.trained.add(what_torch_says())
        if self.fails:
            raise RuntimeError("out of memory")
        return super().training_loss(batch, **options)

    def score(self, *arguments, **options):
        self.validated.add(what_torch_says())
        return super().score(*arguments, **options)


def what_torch_says():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
    )


@pytest.fixture(params=["none", "ieee", "tf32"])
def before(request):
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield what_torch_says()
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_torch_computes_in_tf32_in_training_steps_alone_and_on_gpus_alone(
    dataset, before, precision
):
    model = Told()

    train(model, dataset, val_epoch=1, precision=precision)

    on_cpus = before[2]
    expected = ("high", "tf32", on_cpus) if precision == "tf32" else before
    assert model.trained == {expected}
    assert model.validated == {before}
    assert what_torch_says() == before


def test_torch_is_left_as_it_was_where_a_step_in_tf32_raises(dataset, before):
    with pytest.raises(RuntimeError, match="out of memory"):
        train(Told(fails=True), dataset, precision="tf32")

    assert what_torch_says() == before


def test_attention_takes_tf32_where_training_lets_torch_take_it():
    with matmul_precision("tf32"):
        assert _matmul_takes_tf32()
    assert not _matmul_takes_tf32()


def test_a_training_leaves_no_gradients_behind(dataset):
    model = Stub()

    train(model, dataset)

    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("warmup_steps", "writes"), [(0, 0), (3, 3)])
def test_a_rate_on_a_device_is_written_where_it_changes(dataset, warmup_steps, writes):
    training = make_training(dataset, TrainingOptions(warmup_steps=warmup_steps))
    group = training.optimizer.param_groups[0]
    group["lr"] = torch.tensor(0.01)  # as on a GPU
    with make_sampler(dataset) as sampler:
        for _ in range(6):
            training.take_step(sampler.next_packed())

    assert group["lr"]._version == writes
    assert group["lr"].item() == pytest.approx(0.01)


def make_training(dataset, options):
    loop = LoopOptions(num_epochs=1, learning_rate=0.01)
    return Run(Stub().train(), make_sampler(dataset), loop, options, num_steps=6)


def test_the_lengths_of_the_data_reach_the_step(dataset, monkeypatch):
    reached = []
    monkeypatch.setattr("ssept_ext.training.run.training_step", lambda *a: reached.append(a[-1]))

    make_training(dataset, TrainingOptions())
    Run(Stub(), PaddedSampler(make_sampler(dataset)), LoopOptions(), TrainingOptions(), 1)

    assert reached[0].tolist() == [6] * NUM_USERS
    assert reached[1] is None


def test_memory_is_kept_over_all_epochs_and_given_back_where_one_fails(dataset, monkeypatch):
    told = []
    native = SimpleNamespace(keep_freed_memory=told.append)
    monkeypatch.setattr("ssept_ext.training.environment._extension", SimpleNamespace(native=native))

    train(Stub(), dataset, num_epochs=3, val_epoch=1)
    assert told == [True, False]

    with pytest.raises(RuntimeError, match="out of memory"):
        train(Told(fails=True), dataset)
    assert told == [True, False] * 2

    with kept_memory(torch.device("cuda")):
        pass
    assert len(told) == 4


def test_an_unknown_keyword_is_an_error(dataset):
    with pytest.raises(TypeError, match="colour"):
        make_ssept().train_model(dataset, make_sampler(dataset), colour="red")


@pytest.fixture
def measured(monkeypatch):
    """Let validations give these NDCGs, one after another."""
    ndcgs = [0.1, 0.3, 0.2, 0.3, 0.4, 0.1, 0.1]
    left = iter(ndcgs)
    monkeypatch.setattr("ssept_ext.training.loop.rank_candidates", lambda *_: (next(left), 0.5))
    return ndcgs


@pytest.mark.parametrize(("patience", "validations"), [(0, 7), (1, 3), (2, 4), (3, 7)])
def test_training_ends_when_patience_does(dataset, measured, patience, validations):
    history = train(Stub(), dataset, num_epochs=14, val_epoch=2, patience=patience)

    assert history["val_ndcg"] == measured[:validations]
    assert len(history["loss"]) == 2 * validations


@pytest.mark.parametrize("restore_best", [False, True])
def test_the_best_model_by_validation_is_restored_where_asked_for(dataset, measured, restore_best):
    model = Stub()
    tables = {}

    train(
        model,
        dataset,
        num_epochs=7,
        val_epoch=1,
        restore_best=restore_best,
        callbacks=[
            lambda progress: tables.update({len(progress.epochs): model.table.detach().clone()})
        ],
    )

    assert torch.equal(model.table, tables[5 if restore_best else 7])


def test_seconds_of_training_rise_and_leave_validation_out(dataset, monkeypatch):
    clock = [0]

    def look(by):
        clock[0] += by
        return clock[0]

    monkeypatch.setattr("ssept_ext.training.loop.time.monotonic", lambda: look(1))
    monkeypatch.setattr("ssept_ext.training.loop.rank_candidates", lambda *_: (look(1000), 0.5))

    history = train(Stub(), dataset, num_epochs=3, val_epoch=1)

    assert 0 < history["seconds"][0] < history["seconds"][1] < history["seconds"][2] < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, r'loss must be one of \(.*\), got "hinge"'),
        ({"schedule": "step"}, r'schedule must be one of \(.*\), got "step"'),
        ({"gbce_t": 1.5}, r"gbce_t must be in \[0, 1\], got 1.5"),
        ({"adam_betas": (0.9, 1.0)}, r"adam_betas must be 2 numbers in \[0, 1\), got"),
        ({"adam_betas": (0.9,)}, "adam_betas must be 2 numbers"),
        ({"precision": "fp8"}, r'precision must be one of \(.*\), got "fp8"'),
        ({"precision": "tf32", "bf16": True}, 'bf16=True contradicts precision="tf32"'),
        ({"precision": "float32", "bf16": True}, 'bf16=True contradicts precision="float32"'),
        ({"precision": "bf16", "bf16": False}, 'bf16=False contradicts precision="bf16"'),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0, got -1"),
        ({"patience": 1.5}, "patience must be an integer of at least 0, got 1.5"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and positive, got 0.0"),
    ],
)
def test_wrong_training_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


@pytest.mark.parametrize("options", [{"patience": 1}, {"restore_best": True}])
def test_the_best_model_needs_validations(dataset, options):
    with pytest.raises(ValueError, match="patience and restore_best need a val_epoch"):
        train(Stub(), dataset, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be an integer of at least 1, got 0"),
        ({"num_epochs": 1.5}, "num_epochs must be an integer of at least 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"val_epoch": -1}, "val_epoch must be an integer of at least 0, got -1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be an integer of at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and positive, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite and positive, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be finite and positive, got inf"),
    ],
)
def test_bad_options_are_errors_before_training(dataset, options, message):
    model = Stub()

    with pytest.raises(ValueError, match=message):
        train(model, dataset, **options)

    assert model.batches == []


def test_a_dataset_larger_than_the_model_is_an_error(dataset):
    dataset.itemnum = 31

    with pytest.raises(ValueError, match=r"item 31, the model knows items 1\.\.30"):
        train(Stub(), dataset)


def count_page_faults():
    def faults_of_a_step():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = 2**26 // resource.getpagesize()
    faults_of_a_step()
    assert faults_of_a_step() > pages // 2  # what there is to gain
    with kept_memory(torch.device("cpu")):
        # By where the heap lies, it grows more than once.
        assert min(faults_of_a_step() for _ in range(8)) < pages // 10
    assert faults_of_a_step() > pages // 2


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults, and needs glibc")
def test_memory_that_a_step_frees_is_kept_for_the_next_one(tmp_path):
    # In a process of its own, whose heap no other test has been at.
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_training as t; t.count_page_faults()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
