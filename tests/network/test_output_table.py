"""Models that read items by one table and score them by another."""

import math

import numpy as np
import pytest
import torch
from support.checkpoints import edit_config
from support.factories import perturbed, random_batch, tiny_model
from support.tolerances import assert_close

from ssept_ext import SASREC, SSEPT
from ssept_ext.network.folding import folded
from ssept_ext.recommenders.model import SASREC as DropIn
from ssept_ext.serving.export import export_program
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import make_optimizer

LOSSES = ["bce", "gbce", "bpr", "sampled_softmax", "softmax"]
NAME = "output_embedding_layer.weight"
every_kind = pytest.mark.parametrize("kind", [SSEPT, SASREC])


def make_model(kind=SSEPT, **changes):
    options = {"item_embedding_dim": 5, "user_embedding_dim": 3} if kind is SSEPT else {}
    model = tiny_model(kind, tie_item_embeddings=False, **options | changes)
    return perturbed(model).double()


def tied(model):
    """A model with one table, by which that one scores."""
    arguments = vars(model.config) | {"tie_item_embeddings": True}
    one = type(model)(**arguments).double()
    tensors = dict(model.state_dict())
    tensors["item_embedding_layer.weight"] = tensors.pop(NAME)
    one.load_state_dict(tensors)
    return one


@every_kind
def test_logits_and_scores_are_products_with_rows_of_the_second_table(kind):
    model, batch = make_model(kind), random_batch(4, 2, 6, num_negatives=3)
    candidates = torch.tensor([[1, 20], [3, 4], [3, 3]])
    width = model.config.item_dim

    hidden = model.encode(batch)
    users = batch.users.repeat_interleave(batch.cu_seqlens.diff().long())

    def by_hand(queries, users, items):
        vectors = model.output_embedding_layer.weight[items]
        scores = torch.einsum("nd,nkd->nk", queries[:, :width], vectors)
        if model.user_embedding_layer is None:
            return scores
        user = model.user_embedding_layer.weight[users] * math.sqrt(model.config.user_dim)
        return scores + (queries[:, width:] * user).sum(1, keepdim=True)

    targets = torch.cat([batch.positives[:, None], batch.negatives], 1)
    assert_close(model.sampled_logits(batch, training=False), by_hand(hidden, users, targets))
    last = hidden[batch.cu_seqlens[1:].long() - 1]
    assert_close(model.score(batch, candidates), by_hand(last, batch.users, candidates))


def test_inputs_are_made_of_the_first_table_alone():
    model, batch = make_model(), random_batch(4, 2)
    hidden = model.encode(batch)

    hidden.sum().backward()

    assert model.output_embedding_layer.weight.grad is None
    with torch.no_grad():
        model.output_embedding_layer.weight.zero_()
    assert torch.equal(model.encode(batch), hidden)


@every_kind
@pytest.mark.parametrize("changes", [{}, {"cosine_temperature": 0.2}], ids=["products", "cosines"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_that_of_a_model_with_the_second_table_and_the_same_states(
    loss, changes, kind
):
    model, batch = make_model(kind, **changes), random_batch(4, 2, 6, num_negatives=3)
    one, hidden = tied(model), model.encode(batch).detach()
    one.encode = lambda *_, **__: hidden

    value, expected = model.training_loss(batch, loss), one.training_loss(batch, loss)
    value.backward()
    expected.backward()

    assert_close(value, expected)
    table = one.item_embedding_layer.weight.grad
    assert_close(model.output_embedding_layer.weight.grad, table)
    assert not table[0].any()
    assert model.item_embedding_layer.weight.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_two_equal_tables_are_one_whose_gradient_is_the_sum_of_theirs(loss):
    model, batch = make_model(), random_batch(4, 2, 6, num_negatives=3)
    with torch.no_grad():
        model.item_embedding_layer.weight.copy_(model.output_embedding_layer.weight)
    one = tied(model)

    value, expected = model.training_loss(batch, loss), one.training_loss(batch, loss)
    value.backward()
    expected.backward()

    assert torch.equal(value, expected)
    gradients = [getattr(model, f"{of}_embedding_layer").weight.grad for of in ("item", "output")]
    assert_close(sum(gradients), one.item_embedding_layer.weight.grad)


@pytest.mark.parametrize(("init", "limit"), [("uniform", 0.05), ("xavier", (6 / 925) ** 0.5)])
def test_both_tables_start_alike_and_apart(init, limit):
    model = tiny_model(item_num=920, tie_item_embeddings=False, embedding_init=init)

    first, second = model.item_table(), model.output_table()

    assert not second[0].any()
    assert 0.9 * limit < second.abs().max() <= limit
    assert not torch.equal(first, second)


def test_both_tables_are_decayed_by_l2_reg_once():
    model = make_model(l2_reg=0.1)

    decayed, others = make_optimizer(model, 0.1, TrainingOptions()).param_groups

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(parameter)] for parameter in decayed["params"]) == [
        f"{of}_embedding_layer.weight" for of in ("item", "output", "positional", "user")
    ]
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_a_model_with_one_table_has_no_other_and_scores_by_it():
    model = tiny_model()

    assert NAME not in model.state_dict()
    assert model.output_table() is model.item_table()
    assert tiny_model(tie_item_embeddings=False).state_dict().keys() == {
        *model.state_dict(),
        NAME,
    }


@every_kind
@pytest.mark.parametrize("changes", [{}, {"cosine_temperature": 0.2}], ids=["products", "cosines"])
def test_everything_that_ranks_items_ranks_them_by_the_second_table(kind, changes):
    model, history = make_model(kind, **changes), [3, 5, 9]
    vectors = model.output_embedding_layer.weight[1:].detach().numpy()
    lengths = np.linalg.norm(vectors, axis=1)
    scored_by = vectors / lengths[:, None] if changes else vectors
    scores = scored_by @ model.user_state(history, None if kind is SASREC else 1)
    best = (-scores).argsort() + 1
    everything = {"k": 20, "exclude_seen": False}

    found = model.recommend({1: history}, **everything)
    among = model.recommend({1: history}, candidates=[4, 5, 6], **everything)

    np.testing.assert_allclose(model.item_vectors(), scored_by)
    if kind is SASREC:
        np.testing.assert_allclose(found.scores[0], scores[best - 1])
    assert found.items[0].tolist() == best.tolist()
    assert among.items[0].tolist() == [item for item in best if item in (4, 5, 6)]
    cosines = vectors @ vectors[6] / lengths / lengths[6]
    similar = model.similar_items([7], k=19)
    assert similar.items[0].tolist() == [i for i in (-cosines).argsort() + 1 if i != 7]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_compressed_model_ranks_by_the_second_table(dtype):
    model = make_model(SASREC).float()
    exact = model.recommend({1: [3, 5]}, k=20, exclude_seen=False)
    similar = model.similar_items([7], k=3)

    small = model.compress(dtype)

    found = small.recommend({1: [3, 5]}, k=20, exclude_seen=False)
    order, expected = found.items[0].argsort(), exact.items[0].argsort()
    np.testing.assert_allclose(found.scores[0][order], exact.scores[0][expected], atol=0.1)
    np.testing.assert_allclose(small.similar_items([7], k=3).scores, similar.scores, atol=0.03)
    with torch.no_grad():
        model.output_embedding_layer.weight.mul_(2)
    with pytest.raises(ValueError, match="the model has changed since compress"):
        small.recommend({1: [3, 5]}, k=2)


def test_an_explanation_is_of_scores_by_the_second_table():
    model = make_model(SASREC)

    effects = list(model.explain(7, [3, 5])["effect"])

    states = np.stack([model.user_state(seen) for seen in ([3, 5], [5], [3])])
    scores = states @ model.output_embedding_layer.weight[7].detach().numpy()
    np.testing.assert_allclose(effects, scores[0] - scores[1:])


@every_kind
def test_an_exported_program_answers_by_the_second_table(kind):
    model = make_model(kind).float()
    inputs = torch.tensor([1]), torch.tensor([[0, 0, 3, 5, 9, 8]])
    items, scores = export_program(model, top_k=True).module()(*inputs, torch.tensor([5]))

    found = model.recommend({1: [3, 5, 9, 8]}, k=5)

    assert items.tolist() == found.items.tolist()
    np.testing.assert_allclose(scores.detach(), found.scores, rtol=1e-5)


def test_a_compiled_model_scores_in_one_graph():
    model, batch = make_model().eval(), random_batch(4, 2, 6)
    compiled = torch.compile(model.sampled_logits, backend="aot_eager", fullgraph=True)

    assert_close(compiled(batch), model.sampled_logits(batch))


@every_kind
def test_a_saved_model_has_both_tables(kind, tmp_path):
    model = make_model(kind)

    model.save_pretrained(tmp_path / "saved")
    torch.save(model.state_dict(), tmp_path / "model.pt")

    loaded = kind.from_pretrained(tmp_path / "saved")
    inferred = kind.from_recommenders(tmp_path / "model.pt", attention_num_heads=1)
    for other in (loaded, inferred.double()):
        assert not other.config.tie_item_embeddings
        assert torch.equal(other.output_table(), model.output_table())
        assert torch.equal(other.item_table(), model.item_table())


def test_a_file_with_another_number_of_tables_than_its_config_is_named(tmp_path):
    model = make_model(SASREC)
    model.save_pretrained(tmp_path)
    arguments = {**vars(model.config), "tie_item_embeddings": True}
    edit_config(tmp_path, arguments=arguments)

    with pytest.raises(ValueError, match="tie_item_embeddings is False in the one and True in"):
        SASREC.from_pretrained(tmp_path)


def test_a_model_without_features_is_its_own_folded_model():
    model = make_model()

    assert folded(model) is model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_model(item_features=np.zeros((21, 2))),
            "tie_item_embeddings must be True with item_features, .* got False",
        ),
        (
            lambda: tiny_model(DropIn, tie_item_embeddings=False),
            "tie_item_embeddings must be True for the SASREC of ssept_ext.recommenders, .*False",
        ),
        (
            lambda: make_model().state_dict_for_recommenders(),
            "tie_item_embeddings must be True for recommenders to load it, .* got False",
        ),
        (
            lambda: tiny_model(tie_item_embeddings=2),
            "tie_item_embeddings must be True or False, got 2",
        ),
    ],
    ids=["features", "drop-in", "state dict for recommenders", "no bool"],
)
def test_what_needs_one_table_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
