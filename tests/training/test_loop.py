"""The training loop, on a stub model with one table and one other weight."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.ring import (
    LENGTH,
    NUM_ITEMS,
    NUM_USERS,
    Interrupted,
    PaddedSampler,
    Stub,
    make_sampler,
    make_ssept,
    train,
)

from ssept_ext.data.packed import pack
from ssept_ext.data.sse import SSE
from ssept_ext.evaluation.sampled import evaluate_valid
from ssept_ext.sampling.sampler import WarpSampler
from ssept_ext.training.loop import (
    VALIDATION_SEED,
)

pytestmark = pytest.mark.usefixtures("_one_thread")


def test_training_lowers_the_loss(dataset):
    history = train(Stub(), dataset, num_epochs=30, learning_rate=0.1)

    assert len(history["loss"]) == 30
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["val_ndcg"] == history["val_hr"] == []


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


@pytest.mark.parametrize("wrap", [lambda sampler: sampler, PaddedSampler], ids=["packed", "padded"])
def test_the_step_gets_ids_that_sse_replaced_whatever_the_sampler(dataset, wrap):
    model, plain = Stub(), Stub()
    model.sse = SSE(1.0, 1.0, joint=True, user_num=10**6, item_num=NUM_ITEMS)

    for each in (model, plain):
        train(each, dataset, wrap(make_sampler(dataset)), num_epochs=1, batch_size=12)

    (batch,), (as_it_was,) = model.batches, plain.batches
    assert batch.ids_replaced
    assert (batch.users > NUM_USERS).all()
    assert (batch.items != as_it_was.items).float().mean() > 0.5
    assert torch.equal(batch.negatives, as_it_was.negatives)


def test_methods_of_a_user_get_ids_as_the_sampler_drew_them_and_replace_them_once(dataset):
    model, plain = Stub(), Stub()
    model.sse, model.is_capturable = SSE(item_prob=1.0, item_num=NUM_ITEMS), False

    for each in (model, plain):
        train(each, dataset, make_sampler(dataset), num_epochs=1, batch_size=12)

    assert not model.batches[0].ids_replaced
    assert torch.equal(model.batches[0].items, plain.batches[0].items)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": {1: [2, 3]}},
            "dataset must be a SASRecDataSet, such as Interactions.to_dataset",
        ),
        ({"sampler": [1, 2]}, r"sampler must have a method next_batch, got \[1, 2\]"),
        ({"callbacks": print}, "callbacks must be a sequence of functions, got <built-in"),
    ],
)
def test_what_is_no_argument_of_training_is_named(dataset, changes, message):
    with pytest.raises(TypeError, match=message):
        train(Stub(), **({"dataset": dataset, "sampler": make_sampler(dataset)} | changes))


def test_validation_every_val_epoch_on_the_same_candidates(dataset):
    model = Stub()

    history = train(model, dataset, num_epochs=5, val_epoch=2)

    assert len(history["loss"]) == 5
    assert len(history["val_ndcg"]) == len(history["val_hr"]) == 2
    history = train(model, dataset, num_epochs=1, val_epoch=1)
    last = (history["val_ndcg"][-1], history["val_hr"][-1])
    assert last == evaluate_valid(model, dataset, seed=VALIDATION_SEED)


def test_validation_by_full_ranking_ranks_all_items(dataset):
    model = make_ssept()

    history = train(model, dataset, num_epochs=1, val_epoch=1, validation="full")

    full = model.evaluate_full(dataset, split="valid")
    assert (history["val_ndcg"], history["val_hr"]) == ([full.ndcg[10]], [full.hr[10]])
    assert history["val_hr"][0] < 1  # as it would be among 6 items


@pytest.mark.parametrize("validation", ["sampled", "full"])
def test_nobody_to_validate_on_is_an_error_before_training(dataset, validation):
    model = Stub()
    dataset.user_valid = {user: [] for user in dataset.user_train}

    with pytest.raises(ValueError, match="no user with a training event and a valid item"):
        train(model, dataset, val_epoch=1, validation=validation)

    assert model.batches == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_gets_its_mode_back(dataset, training):
    model = Stub().train(training)

    train(model, dataset, val_epoch=1)

    assert model.training is training


def test_ctrl_c_returns_the_finished_epochs_with_a_warning(dataset):
    model = Stub().eval()
    sampler = Interrupted(make_sampler(dataset), after=7, error=KeyboardInterrupt())

    with pytest.warns(
        UserWarning, match="interrupted in epoch 3 of 9: the model is not trained to"
    ):
        history = train(model, dataset, sampler, num_epochs=9, verbose=False)

    assert len(history["loss"]) == 2  # of 3 steps each
    assert not model.training


def test_torchs_generator_moves_on_by_a_seed_for_each_step_and_seeds_are_not_drawn_from_it(dataset):
    def train_two_epochs(**options):
        torch.manual_seed(1)
        model = make_ssept()
        with make_sampler(dataset) as sampler:
            train(model, dataset, sampler, **options)
        return model.item_embedding_layer.weight, torch.rand(1)

    table, following = train_two_epochs()
    other_table, other_following = train_two_epochs(callbacks=[lambda _: torch.rand(3) is None])

    torch.manual_seed(1)
    make_ssept()
    torch.randint(2**63 - 1, (6,))  # 2 epochs of 3 steps
    assert torch.rand(1) == following != other_following
    assert torch.equal(table, other_table)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(dataset, value):
    model = Stub()
    honest = model.sampled_logits
    model.sampled_logits = lambda batch: honest(batch) * (value if len(model.batches) == 5 else 1)

    with pytest.raises(FloatingPointError, match="step 2 of epoch 2"):
        train(model, dataset, num_epochs=9)

    assert model.training


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


def test_a_dataset_larger_than_the_model_is_an_error(dataset):
    dataset.itemnum = 31

    with pytest.raises(ValueError, match=r"item 31, the model knows items 1\.\.30"):
        train(Stub(), dataset)
