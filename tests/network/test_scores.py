"""Scores by cosines and a temperature, wherever items are scored."""

import math

import numpy as np
import pytest
import torch
from support.factories import model_for, perturbed, random_batch, tiny_model
from support.tolerances import assert_close
from torch.nn import functional as F

from ssept_ext import SASREC, SSEPT
from ssept_ext.data.synthetic import synthetic
from ssept_ext.network.scores import LEAST_TEMPERATURE

TEMPERATURE = 0.05


def cosine_model(kind=SSEPT, **changes):
    options = {"item_embedding_dim": 5, "user_embedding_dim": 3} if kind is SSEPT else {}
    options |= {"cosine_temperature": TEMPERATURE, **changes}
    return perturbed(tiny_model(kind, **options)).double()


def by_definition(model, hidden, users, items):
    """(N, K) scores: cosine over the temperature, and the users' part as ever."""
    width = model.config.item_dim
    vectors = model.item_embedding_layer.weight[items]  # (N, K, Di)
    cosines = F.cosine_similarity(hidden[:, None, :width], vectors, dim=-1)
    if model.user_embedding_layer is None:
        return cosines / TEMPERATURE
    user = model.user_embedding_layer.weight[users] * math.sqrt(model.config.user_dim)
    return cosines / TEMPERATURE + (hidden[:, width:] * user).sum(1, keepdim=True)


def users_of_tokens(batch):
    return batch.users.repeat_interleave(batch.cu_seqlens.diff().long())


@pytest.mark.parametrize("kind", [SASREC, SSEPT])
def test_logits_and_scores_are_cosines_over_the_temperature(kind):
    model, batch = cosine_model(kind), random_batch(4, 2, 6, num_negatives=3)
    candidates = torch.tensor([[1, 20], [3, 4], [3, 3]])

    hidden = model.encode(batch)
    targets = torch.cat([batch.positives[:, None], batch.negatives], 1)
    last = hidden[batch.cu_seqlens[1:].long() - 1]

    expected = by_definition(model, hidden, users_of_tokens(batch), targets)
    assert_close(model.sampled_logits(batch, training=False), expected)
    assert_close(
        model.score(batch, candidates), by_definition(model, last, batch.users, candidates)
    )


@pytest.mark.parametrize("loss", ["bce", "sampled_softmax", "softmax", "gbce", "bpr"])
def test_every_loss_is_that_of_a_model_with_the_normalised_vectors(loss):
    model, batch = cosine_model(SASREC), random_batch(4, 2, 6, num_negatives=3)
    plain = tiny_model(SASREC, item_num=20).double()
    with torch.no_grad():
        hidden = F.normalize(model.encode(batch), dim=1) / TEMPERATURE
        plain.item_embedding_layer.weight.copy_(F.normalize(model.item_embedding_layer.weight))
    plain.encode = lambda *_, **__: hidden

    assert_close(model.training_loss(batch, loss), plain.training_loss(batch, loss))


def test_the_loss_does_not_depend_on_the_lengths_of_vectors():
    model, batch = cosine_model(SASREC, num_blocks=1), random_batch(4, 2, 6)

    model.training_loss(batch).backward()

    rows, gradient = (model.item_embedding_layer.weight, model.item_embedding_layer.weight.grad)
    only_negatives = sorted(set(batch.negatives.flatten().tolist()) - set(batch.items.tolist()))
    along = (rows * gradient).sum(1)[only_negatives]
    assert gradient[only_negatives].abs().sum() > 0.1
    assert_close(along, torch.zeros_like(along))


def test_rankings_recommendations_and_vectors_agree_with_the_scores():
    data = synthetic(num_users=20)
    model = perturbed(model_for(data, SASREC, cosine_temperature=TEMPERATURE)).double()
    history = [5, 9, 2]
    seq = torch.tensor([[0] * (model.seq_max_len - 3) + history])
    scores = model.predict({"input_seq": seq, "candidate": torch.arange(1, data.itemnum + 1)[None]})
    best = scores[0].argsort(descending=True)[:9].numpy() + 1

    everything = {"k": 9, "exclude_seen": False}
    found = model.recommend({1: history}, **everything)
    among = model.recommend({1: history}, candidates=best[::-1].tolist(), **everything)
    by_index = model.item_vectors() @ model.user_state(history)

    assert found.items[0].tolist() == among.items[0].tolist() == best.tolist()
    np.testing.assert_allclose(found.scores[0], scores[0][best - 1])
    np.testing.assert_allclose(by_index, scores[0])


def test_a_learned_temperature_starts_as_given_and_is_trained():
    model, batch = cosine_model(learn_temperature=True), random_batch(4, 2, 6)
    model.reset_parameters()
    fixed = cosine_model()
    fixed.load_state_dict(model.state_dict(), strict=False)

    before = model.training_loss(batch)
    before.backward()

    assert_close(before, fixed.training_loss(batch))
    assert model.scores.log_temperature.exp().item() == pytest.approx(TEMPERATURE)
    assert model.scores.log_temperature.grad.item() != 0


def test_a_compiled_model_scores_in_one_graph():
    model, batch = cosine_model(learn_temperature=True).eval(), random_batch(4, 2, 6)
    compiled = torch.compile(model.sampled_logits, backend="aot_eager", fullgraph=True)

    assert_close(compiled(batch), model.sampled_logits(batch))


def test_a_learned_temperature_stays_above_the_least():
    model = cosine_model(SASREC, learn_temperature=True)
    with torch.no_grad():
        model.scores.log_temperature.fill_(-100)

    queries = model.scores.queries(torch.randn(7, 4, dtype=torch.float64))

    assert_close(queries.norm(dim=1), torch.full((7,), 1 / LEAST_TEMPERATURE).double())


def test_a_row_of_zeros_scores_zero():
    model, batch = cosine_model(SASREC), random_batch(3)
    with torch.no_grad():
        model.item_embedding_layer.weight[7] = 0

    assert model.score(batch, torch.tensor([[7]])).item() == 0


def test_the_state_dict_has_a_temperature_only_if_it_is_learned():
    assert "scores.log_temperature" in cosine_model(learn_temperature=True).state_dict()
    assert set(cosine_model().state_dict()) == set(tiny_model().state_dict())


def test_there_is_no_temperature_to_learn_without_one():
    with pytest.raises(ValueError, match="learn_temperature must be False without a cosine_temp"):
        tiny_model(learn_temperature=True)
