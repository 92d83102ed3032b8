"""Somebody unknown gets the mean of all users' vectors, by whichever way scores are asked for."""

import copy

import numpy as np
import pytest
import torch
from support.factories import perturbed, random_batch, tiny_model
from support.graphed_steps import SEED, adam
from support.raw_ids import NUM_ITEMS, rows

from ssept_ext.network import tables
from ssept_ext.serving.export import INPUTS, export_program
from ssept_ext.training.step import eager_step

HISTORY = ["i7", "i2"]


@pytest.fixture
def mean_counter(monkeypatch):
    """The number of means that were computed so far, as its length."""
    calls = []
    honest = tables.mean_row
    monkeypatch.setattr(tables, "mean_row", lambda table: calls.append(table) or honest(table))
    return calls


def unknown_user_vector(model):
    return model.user_vectors(torch.tensor([0]))[0]


def padded_inputs(model, users):
    numbers = model.known.item_ids.encode(HISTORY)
    seq = np.pad(numbers, (model.seq_max_len - len(numbers), 0))
    candidates = np.arange(1, NUM_ITEMS + 1)
    inputs = {"user": users, "input_seq": seq, "candidate": candidates}
    return {
        name: torch.tensor(np.stack([x] * len(users)) if name != "user" else x)
        for name, x in inputs.items()
    }


def test_recommend_predict_and_an_exported_model_score_alike(model):
    inputs = padded_inputs(model, [0, 2])

    frame = model.recommend({"zoe": HISTORY, "bert": HISTORY}, k=NUM_ITEMS, exclude_seen=False)

    predicted = model.predict(inputs)
    exported = export_program(model).module()(*(inputs[name] for name in INPUTS))
    torch.testing.assert_close(exported, predicted)
    for user, scores in zip(("zoe", "bert"), predicted, strict=True):
        of_item = {item: score for name, item, score, _ in rows(frame) if name == user}
        expected = [of_item[item] for item in model.known.item_ids.raw]
        np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_an_unknown_user_of_a_packed_batch_is_the_mean_user():
    model = perturbed(tiny_model().double())
    batch = random_batch(3, 5, 1)
    batch.users[:] = torch.tensor([4, 0, 2])
    candidates = torch.randint(1, 21, (3, 4))

    scores = model.score(batch, candidates)

    mean = copy.deepcopy(model)
    with torch.no_grad():
        mean.user_embedding_layer.weight[3] = model.user_embedding_layer.weight[1:].mean(0)
    batch.users[1] = 3
    torch.testing.assert_close(scores, mean.score(batch, candidates))
    queries, user_part = mean.encode_last(batch)
    vectors = model.item_embedding_layer.weight[candidates]
    by_parts = torch.einsum("bd,bkd->bk", queries, vectors) + user_part[:, None]
    torch.testing.assert_close(scores, by_parts)


def test_a_user_outside_the_table_is_named():
    batch = random_batch(3)
    batch.users[:] = 6

    with pytest.raises(IndexError, match=r"users has id 6, outside its table of 6 rows \(0..5\)"):
        tiny_model().score(batch, torch.tensor([[1]]))


@pytest.mark.parametrize(("users", "times"), [(["zoe", "yan", "bert"], 1), (["bert"], 0)])
def test_the_mean_user_is_computed_once_for_a_request_of_unknown_users(
    model, mean_counter, users, times
):
    model.recommend(dict.fromkeys(users, HISTORY), batch_size=1)

    assert len(mean_counter) == (times if hasattr(model, "user_num") else 0)


def test_scores_make_one_table_of_the_vectors_of_their_users(monkeypatch):
    model, batch = tiny_model(), random_batch(3, 5)
    tables, honest = [], torch.cat
    monkeypatch.setattr(
        torch, "cat", lambda x, *a: tables.append(x[0].shape == (1, 4)) or honest(x, *a)
    )

    model.score(batch, torch.tensor([[1], [2]]))

    assert sum(tables) == 1


def step_on(model):
    """While another thread asks for the mean."""

    def loss(batch, seed):
        value = model.training_loss(batch, seed=seed)
        unknown_user_vector(model)
        return value

    eager_step(adam(model), loss)(random_batch(3, 2), SEED)


def train_by_hand(model):
    optimizer = adam(model)
    model.training_loss(random_batch(3, 2)).backward()
    optimizer.step()


def load(model):
    model.load_state_dict(perturbed(tiny_model()).state_dict(), assign=True)


def average(model):
    """Change the parameters as code for moving averages does: torch does not count this."""
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


CHANGES = [average, perturbed, step_on, train_by_hand, load, torch.nn.Module.double]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_mean_user_follows_the_parameters(change):
    model = perturbed(tiny_model())
    before = unknown_user_vector(model)

    change(model)

    after = unknown_user_vector(model)
    table = model.user_embedding_layer.weight
    torch.testing.assert_close(after, table[1:].mean(0), rtol=0, atol=0)
    assert after.dtype != before.dtype or not torch.equal(after, before)


def test_the_mean_user_of_a_model_made_for_inference_follows_its_parameters():
    with torch.inference_mode():
        model = tiny_model()
        unknown_user_vector(model)
        perturbed(model)

        mean = unknown_user_vector(model)

        assert torch.equal(mean, model.user_embedding_layer.weight[1:].mean(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [1, 10_000, 25_001])
def test_the_mean_of_a_table_of_any_size_is_that_of_its_rows(rows, dtype):
    table = (torch.rand(rows, 3, dtype=torch.float64) + 5).to(dtype)

    mean = tables.mean_row(table)

    assert mean.dtype == dtype
    torch.testing.assert_close(mean, table.double().mean(0).to(dtype))
