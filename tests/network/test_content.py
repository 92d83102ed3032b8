"""Models that know their items by features, too."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.factories import perturbed, random_batch, tiny_model
from support.tolerances import assert_close

from ssept_ext import SASREC, SSEPT, IdMap, Interactions, ItemFeatures
from ssept_ext.data.packed import number_rows
from ssept_ext.evaluation import Popularity
from ssept_ext.network.folding import folded
from ssept_ext.recommenders.model import SASREC as DropIn
from ssept_ext.serving.export import export_program
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import make_optimizer
from ssept_ext.training.table_rows import RowOptimizer, RowsOfWholeTables

LOSSES = ["bce", "gbce", "bpr", "sampled_softmax", "softmax"]
FEATURES = np.random.default_rng(0).normal(size=(21, 3))
FEATURES[0] = 0
MODELS = {
    "SSEPT": (SSEPT, {}),
    "SASREC": (SASREC, {}),
    "original": (SSEPT, {"architecture": "original"}),
    "pre-ln, cosine": (SSEPT, {"architecture": "pre-ln", "cosine_temperature": 0.2}),
    "gated": (SASREC, {"architecture": "gated", "position_bias": True}),
}


def make_model(kind=SSEPT, **changes):
    return perturbed(tiny_model(kind, item_features=FEATURES, **changes)).double()


@pytest.fixture(params=MODELS)
def model(request):
    kind, changes = MODELS[request.param]
    return make_model(kind, **changes)


def test_the_vector_of_an_item_is_its_row_and_the_projection_of_its_features():
    model = make_model()

    row, projection = model.item_embedding_layer.weight[7], model.content.projection
    expected = row + projection @ torch.from_numpy(FEATURES[7]).float().double()
    assert_close(model.item_table()[7], expected)
    assert torch.equal(model.item_table()[0], model.item_embedding_layer.weight[0])
    np.testing.assert_allclose(model.item_vectors()[6], expected.detach())


@pytest.mark.parametrize("kind", [SSEPT, SASREC])
def test_a_model_starts_as_the_one_without_features(kind):
    torch.manual_seed(3)
    plain = tiny_model(kind)
    torch.manual_seed(3)
    model = tiny_model(kind, item_features=FEATURES)
    batch = random_batch(4, 2)

    assert torch.equal(model.encode(batch), plain.encode(batch))
    assert torch.equal(model.training_loss(batch), plain.training_loss(batch))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_a_model_whose_table_has_the_same_vectors(model, loss):
    batch = random_batch(4, 1, 5, num_negatives=3)

    value, plain = model.training_loss(batch, loss), folded(model)
    value.backward()
    expected = plain.training_loss(batch, loss)
    expected.backward()

    assert_close(value, expected)
    table = plain.item_embedding_layer.weight.grad
    assert_close(model.item_embedding_layer.weight.grad, table)
    assert_close(model.content.projection.grad, table.T @ model.content.features)


@pytest.mark.parametrize("loss", LOSSES[:-1])
@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam"])
def test_only_the_features_of_a_batch_are_projected(model, loss, table_optimizer, monkeypatch):
    batch = number_rows(random_batch(4, 1, 5, num_negatives=3))
    model.training_loss(batch, loss).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    options = TrainingOptions(table_optimizer=table_optimizer)
    rows = RowsOfWholeTables(model)
    if table_optimizer != "adam":
        rows = RowOptimizer(model, options, make_optimizer(model, 0.1, options))
    monkeypatch.setattr(model, "item_table", lambda: pytest.fail("all items were looked up"))

    gathered = rows.gather(batch)
    model.training_loss(gathered, loss).backward()
    of_rows = gathered.tables[0].grad
    rows.collect(gathered)

    assert_close(model.content.projection.grad, expected["content.projection"])
    assert_close(of_rows, expected["item_embedding_layer.weight"][batch.numbers.item_ids])


def test_sse_replaces_an_item_s_features_with_its_vector():
    model = make_model(sse_item_prob=1.0, sse_target_prob=1.0).train()
    batch, seed = random_batch(4, 5), torch.tensor([5])

    plain = folded(model)

    assert_close(model.training_loss(batch, seed=seed), plain.training_loss(batch, seed=seed))


def test_features_are_not_trained():
    model = make_model()

    model.training_loss(random_batch(4, 5)).backward()

    assert not model.content.features.requires_grad
    assert set(dict(model.named_parameters())) >= {"content.projection"}
    trained = make_optimizer(model, 0.1, TrainingOptions()).param_groups[0]["params"]
    assert any(p is model.content.projection for p in trained)
    assert all(p is not model.content.features for p in trained)


def test_everything_that_asks_for_scores_is_answered_as_by_a_table_of_the_same_vectors(model):
    plain, histories = folded(model), {1: [3, 5, 9], 2: [7]}
    seq = {"user": [1, 2], "input_seq": [[0, 3, 5], [0, 0, 9]], "candidate": [[1, 20], [0, 5]]}
    many = seq | {"candidate": [[*range(1, 21)]] * 2, "input_seq": [[3, 5, 9, 8, 7, 6]] * 2}

    for inputs in (seq, many):  # of which one reads fewer items than there are
        assert_close(model.predict(inputs), plain.predict(inputs))
    for options in ({}, {"candidates": [4, 5, 6]}):
        found, expected = (m.recommend(histories, k=3, **options) for m in (model, plain))
        assert found.items.tolist() == expected.items.tolist()
        np.testing.assert_allclose(found.scores, expected.scores)
    similar, others = model.similar_items([3, 5], k=4), plain.similar_items([3, 5], k=4)
    assert similar.items.tolist() == others.items.tolist()
    np.testing.assert_allclose(model.user_state([3, 5]), plain.user_state([3, 5]))
    effects = [list(m.explain(7, [3, 5])["effect"]) for m in (model, plain)]
    np.testing.assert_allclose(*effects)


def test_an_id_outside_the_table_is_refused_as_it_is_without_features():
    model, batch = make_model(), random_batch(3)
    batch.items[1] = 99

    with pytest.raises(IndexError, match=r"items has id 99, outside its table of 21 rows"):
        model.encode(replace(batch, positives=None, negatives=None))


def test_an_exported_program_needs_no_features():
    model = make_model(SASREC).float()

    program = export_program(model).module()

    inputs = [torch.tensor(x) for x in ([1], [[0, 0, 3, 5, 9, 8]], [[4, 20, 7]])]
    expected = model.predict({"input_seq": inputs[1], "candidate": inputs[2]})
    torch.testing.assert_close(program(*inputs), expected)
    assert not [name for name, _ in program.named_buffers() if "content" in name]


def test_recommenders_loads_the_vectors_as_a_table():
    tensors = make_model(SASREC).state_dict_for_recommenders()

    assert not [name for name in tensors if name.startswith("content")]


def test_a_model_without_features_is_its_own_folded_model():
    model = tiny_model()

    assert folded(model) is model


def test_the_drop_in_for_recommenders_refuses_features():
    with pytest.raises(
        ValueError, match="item_features must be None for the SASREC of ssept_ext.recommenders"
    ):
        tiny_model(DropIn, item_features=FEATURES)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[1:], "must have 21 rows, of the padding and of items 1 to 20, got 20"),
        (np.ones((21, 2)), "row 0 of item_features, the padding's, must be zero"),
        (np.full((21, 2), np.nan), "must be finite, got nan in row 0"),
        (FEATURES[:, 0], r"must be a matrix, got shape \(21,\)"),
        (np.zeros((21, 0)), r"must be a matrix, got shape \(21, 0\)"),
        ([["a"]] * 21, "must be a matrix of numbers"),
    ],
)
def test_wrong_features_are_named(features, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(item_features=features)


def test_features_of_another_width_than_was_announced_are_refused():
    with pytest.raises(
        ValueError, match="item_features must have 2 columns, as the model has, got 3"
    ):
        tiny_model(item_features=FEATURES, item_feature_dim=2)


def test_a_saved_model_has_its_features(model, tmp_path):
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path)

    assert torch.equal(loaded.content.features, model.content.features)
    assert loaded.config.item_feature_dim == 3
    np.testing.assert_array_equal(loaded.item_vectors(), model.item_vectors())


def test_added_items_start_from_the_mean_row_and_their_own_features(model):
    table, projection = model.item_embedding_layer.weight[1:], model.content.projection
    mean, before = table.mean(0).detach(), model.item_table().detach()
    new = np.array([[1.0, 2, 0], [0, 0, 0]])

    assert model.add_items(new) == 2

    assert (model.item_num, model.config.item_num, model.sse.item_num) == (22, 22, 22)
    after = model.item_table()
    assert torch.equal(after[:21], before)
    assert_close(after[21], mean + projection @ torch.from_numpy(new[0]))
    assert_close(after[22], before[1:].mean(0))  # an average item, of which nothing is known
    assert len(model.predict({"user": [1], "input_seq": [[3, 5]], "candidate": [[21, 22]]})[0]) == 2


def known_model(kind=SASREC):
    """Of three users, of whom each lacks one of 20 items."""
    rows = [(f"u{u}", f"i{i}", i) for u in range(3) for i in range(20) if i != u]
    user, item, timestamp = zip(*rows, strict=True)
    pa = pytest.importorskip("pyarrow")
    events = Interactions.from_dataframe(
        pa.table({"user": user, "item": item, "timestamp": timestamp})
    )
    features = ItemFeatures.from_arrays([f"i{i}" for i in range(20)], FEATURES[1:])
    options = {"seq_max_len": 6, "embedding_dim": 4, "num_epochs": 1, "verbose": False}
    return kind.fit(events, item_features=features, **options), events


@pytest.mark.parametrize("kind", [SSEPT, SASREC])
def test_an_item_is_recommended_before_its_first_event(kind, tmp_path):
    model, events = known_model(kind)
    loved = model.known.item_ids.encode(["i7"])[0]
    with torch.no_grad():
        model.content.projection.normal_()

    assert model.add_items({"novelty": FEATURES[loved] * 50, "i3": FEATURES[1]}) == 1

    assert model.known.item_ids.raw.tolist()[-1] == "novelty"
    frame = model.recommend(users=["u1"], k=21, exclude_seen=False)
    assert "novelty" in set(frame["item"])
    assert len(model.similar_items(["novelty"], k=3)) == 3
    model.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).item_num == 21
    assert model.evaluate_ranks(events.to_dataset()).num_items == 21
    assert Popularity(model.known.to_dataset()).score_items(model.known.histories).shape == (3, 22)


def test_added_items_have_the_row_of_an_average_event_where_numbers_of_events_are_known():
    model, _ = known_model()
    rows, counts = model.item_embedding_layer.weight[1:], torch.tensor([2, 2, *[3] * 17, 2])
    expected = (rows * counts[:, None]).sum(0) / counts.sum()

    model.add_items({"novelty": [1, 0, 0]})

    assert_close(model.item_embedding_layer.weight[21], expected)


def test_a_compressed_model_ranks_by_its_own_vectors_once_items_were_added():
    model = make_model(SASREC).float().compress("int8")

    model.add_items(FEATURES[1:3] * 100)

    assert model.compressed is None
    assert model.recommend({1: [3]}, k=22).items.max() == 22


def test_a_compressed_model_knows_that_features_have_changed():
    model = make_model(SASREC).float()
    compressed = model.compress("int8")

    model.content.set_features(FEATURES * 2)

    with pytest.raises(ValueError, match="the model has changed since compress"):
        compressed.recommend({1: [3]}, k=2)


def test_items_are_added_to_a_model_that_was_saved_without_histories(tmp_path):
    known_model()[0].save_pretrained(tmp_path, histories=False)
    model = SASREC.from_pretrained(tmp_path)

    model.add_items({"novelty": [1, 0, 0]})

    assert model.known.popularity.tolist() == [0, 2, 2, *[3] * 17, 2, 0]
    model.save_pretrained(tmp_path)
    assert SASREC.from_pretrained(tmp_path).item_num == 21


def test_a_model_that_trained_on_all_events_still_does_so_after_items_were_added():
    model, events = known_model()
    rest = {"num_epochs": 1, "verbose": False}
    model = SASREC.fit(
        events,
        hold_out=False,
        item_features=dict(zip([f"i{i}" for i in range(20)], FEATURES[1:], strict=True)),
        seq_max_len=6,
        embedding_dim=4,
        **rest,
    )
    model.add_items({"novelty": [1, 0, 0]})
    pa = pytest.importorskip("pyarrow")
    more = pa.table(
        {"user": ["u1"] * 3, "item": ["novelty", "i3", "i4"], "timestamp": [90, 91, 92]}
    )

    report = model.update(Interactions.from_dataframe(more), **rest)

    assert (report.new_items, report.trained_users) == (0, 2)
    assert len(model.trained_on.training) > 0
    everything = model.known.to_dataset(hold_out=False)
    assert model.trained_on.training == type(model.trained_on).of(everything).training


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({7: [1, 0, 0]}, TypeError, "item ids must be of type str, as those known, got int64"),
        ({"a": [1, 0]}, ValueError, "item_features must have 3 columns, as the model has, got 2"),
        ({"a": [1, 0], "b": [1]}, ValueError, "must have rows of one length"),
        ({}, ValueError, "must have rows of one length, for at least one item"),
        ({"a": [1, np.inf, 0]}, ValueError, "must be finite, those of item 'a' are not"),
    ],
)
def test_items_that_cannot_be_added_change_nothing(features, error, message):
    model, _ = known_model()
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(error, match=message):
        model.add_items(features)

    assert len(model.known.item_ids) == model.item_num == 20
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_model_without_features_takes_no_items_by_them():
    with pytest.raises(ValueError, match="made with item_features, which tell where they belong"):
        tiny_model().add_items(FEATURES)


def test_ids_of_other_items_are_left_out_and_missing_ones_have_features_zero():
    pa = pytest.importorskip("pyarrow")
    events = Interactions.from_dataframe(
        pa.table({"user": ["a", "a"], "item": [10, 20], "timestamp": [1, 2]})
    )
    given = ItemFeatures(IdMap([20, 30]), np.float32([[1, 2], [3, 4]]))

    with pytest.warns(UserWarning, match="item_features lack 1 of 2 items, such as 10"):
        rows = given.rows_of(events.item_ids)

    assert rows.tolist() == [[0, 0], [1, 2]]
