"""Copies of models that have more users and items."""

from dataclasses import replace

import pytest
import torch
from support.factories import perturbed, random_batch, tiny_model

from ssept_ext import SASREC, SSEPT, IdMap
from ssept_ext.data.histories import Histories
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.growing import grown

NEW_ITEMS = ("neighbours", "mean")


@pytest.fixture
def known():
    """7 users and 22 items: two users and items more than the models have. Nobody had item 22."""
    events = Histories.from_mapping({u: [u, u + 1] for u in range(1, 7)} | {7: [4, 21, 9]})
    return KnownHistories(IdMap(range(7), "user"), IdMap(range(22), "item"), events)


@pytest.fixture(params=[SSEPT, SASREC])
def model(request):
    return perturbed(tiny_model(request.param, sse_item_prob=0.5))


@pytest.fixture
def untied():
    return perturbed(tiny_model(SASREC, tie_item_embeddings=False))


def tables(model):
    layers = [model.item_embedding_layer, model.user_embedding_layer]
    return [layer.weight.detach() for layer in layers if layer is not None]


@pytest.mark.parametrize("new_items", NEW_ITEMS)
def test_old_rows_and_all_other_parameters_are_those_of_the_model(model, known, new_items):
    larger = grown(model, known, new_items)

    for name, x in larger.state_dict().items():
        assert torch.equal(x[: len(model.state_dict()[name])], model.state_dict()[name]), name
    assert [len(table) for table in tables(larger)] == [23, 8][: len(tables(model))]
    assert larger.state_dict().keys() == model.state_dict().keys()


def test_the_model_itself_stays_as_it_is(model, known):
    before = {name: x.clone() for name, x in model.state_dict().items()}

    larger = grown(model, known)
    for parameter in larger.parameters():
        parameter.data.zero_()

    assert (model.item_num, model.known) == (20, None)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_new_item_starts_from_the_mean_of_its_neighbours(model, known):
    (items, *_), (old, *_) = tables(grown(model, known)), tables(model)

    torch.testing.assert_close(items[21], (old[4] + old[9]) / 2)


def test_a_new_item_starts_from_its_neighbours_in_both_tables_of_a_model_with_two(untied, known):
    old, larger = untied.output_table().detach(), grown(untied, known)
    other = grown(untied, known, "mean").output_table()

    new = larger.output_table()

    assert torch.equal(new[:21], old)
    torch.testing.assert_close(new[21], (old[4] + old[9]) / 2)
    torch.testing.assert_close(new[22], old[1:].mean(0))
    torch.testing.assert_close(other[21], old[1:].mean(0))
    first = untied.item_table().detach()
    torch.testing.assert_close(larger.item_table()[21], (first[4] + first[9]) / 2)


def test_items_without_neighbours_and_all_if_asked_start_from_the_mean_of_items(model, known):
    mean = tables(model)[0][1:].mean(0)

    torch.testing.assert_close(tables(grown(model, known))[0][22], mean)
    torch.testing.assert_close(tables(grown(model, known, "mean"))[0][21], mean)


def test_a_new_user_is_scored_as_an_unknown_one_was(known):
    model = perturbed(tiny_model(SSEPT))
    larger = grown(model, known)
    batch, items = random_batch(4), torch.arange(1, 21)[None]

    as_new = larger.score(replace(batch, users=torch.tensor([7])), items)

    of_unknown = model.score(replace(batch, users=torch.tensor([0])), items)
    torch.testing.assert_close(as_new, of_unknown)


def test_sse_draws_from_all_items_of_the_copy(model, known):
    larger = grown(model, known)

    assert larger.sse.item_num == larger.item_num == larger.config.item_num == 22
    if isinstance(model, SSEPT):
        assert larger.sse.user_num == larger.user_num == 7


def test_a_table_that_is_not_to_be_trained_stays_so(model, known):
    model.item_embedding_layer.weight.requires_grad_(False)

    assert not grown(model, known).item_embedding_layer.weight.requires_grad


def test_half_precision_is_kept(model, known):
    larger = grown(model.bfloat16(), known)

    assert {x.dtype for x in larger.parameters()} == {torch.bfloat16}
