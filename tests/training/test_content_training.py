"""Training with features of items, from `fit` to an item that had no event."""

import numpy as np
import pytest
import torch
from support.tolerances import assert_close

from ssept_ext import SASREC, SSEPT, Interactions
from ssept_ext.training import table_rows
from ssept_ext.training.run import Run

pytestmark = pytest.mark.usefixtures("_one_thread")

pa = pytest.importorskip("pyarrow")

NUM_KINDS, NUM_ITEMS, NUM_USERS, LENGTH = 5, 40, 120, 12
TRAINING = {"seq_max_len": 8, "embedding_dim": 8, "batch_size": 32, "verbose": False}


def kind_of(item):
    return item % NUM_KINDS


FEATURES = {f"i{i}": np.eye(NUM_KINDS)[kind_of(i)] for i in range(NUM_ITEMS)}
NEW = [f"i{i}" for i in range(NUM_ITEMS, NUM_ITEMS + 2 * NUM_KINDS)]
OF_NEW = {item: np.eye(NUM_KINDS)[kind_of(int(item[1:]))] for item in NEW}


@pytest.fixture(scope="module")
def events():
    """Users who go from an item to any of the next kind, so that only its kind tells what comes next."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(NUM_USERS):
        for t in range(LENGTH):
            item = NUM_KINDS * rng.integers(NUM_ITEMS // NUM_KINDS) + (user + t) % NUM_KINDS
            rows.append((f"u{user}", f"i{item}", 100 * t + user))
    user, item, timestamp = zip(*rows, strict=True)
    return Interactions.from_dataframe(
        pa.table({"user": user, "item": item, "timestamp": timestamp})
    )


def fit(events, kind=SASREC, **options):
    return kind.fit(events, item_features=FEATURES, **{"num_epochs": 2} | TRAINING | options)


@pytest.mark.parametrize("kind", [SSEPT, SASREC])
def test_new_items_are_recommended_where_their_kind_belongs(events, kind):
    model = fit(events, kind, num_epochs=60)

    assert model.add_items(OF_NEW) == len(NEW)

    asked = [f"u{user}" for user in range(20)]
    frame = model.recommend(users=asked, k=2, candidates=NEW)
    expected = [(user + LENGTH) % NUM_KINDS for user in range(20) for _ in range(2)]
    found = [kind_of(int(item[1:])) for item in frame["item"]]
    assert np.mean(np.array(found) == expected) > 0.9  # by chance .2


@pytest.mark.parametrize("kind", [SSEPT, SASREC])
@pytest.mark.parametrize("l2_reg", [0.0, 0.1])
def test_training_by_rows_is_training_of_whole_tables(events, kind, l2_reg, monkeypatch):
    options = {"dropout_rate": 0.2, "sse_item_prob": 0.3, "l2_reg": l2_reg}
    by_rows = fit(events, kind, **options)

    # As on a GPU and in several processes.
    monkeypatch.setattr(table_rows.TableRows, "__init__", lambda *_: pytest.fail("by rows"))
    monkeypatch.setattr("ssept_ext.training.run.table_rows", lambda *_: None)
    whole = fit(events, kind, **options)

    expected = whole.state_dict()
    for name, x in by_rows.state_dict().items():
        torch.testing.assert_close(x, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "softmax"},
        {"table_optimizer": "lazy_adam"},
        {"table_optimizer": "rowwise_adagrad"},
        {"precision": "bf16"},
        {"cosine_temperature": 0.1},
        {"architecture": "gated"},
    ],
    ids=str,
)
def test_the_projection_is_trained_by_every_way_of_training(events, options):
    model = fit(events, num_epochs=8, **options)

    assert model.content.projection.abs().max() > 1e-3
    assert model.content.features.shape == (NUM_ITEMS + 1, NUM_KINDS)
    kinds = model.content.features[1:].argmax(1).tolist()
    assert kinds == [kind_of(int(item[1:])) for item in model.known.item_ids.raw]


def test_a_training_goes_on_only_with_the_features_that_it_began_with(events, tmp_path):
    model = fit(events, checkpoint=tmp_path)

    again = fit(events, checkpoint=tmp_path)
    assert torch.equal(again.item_table(), model.item_table())
    turned = {item: -row for item, row in FEATURES.items()}
    with pytest.raises(
        ValueError, match="saved by a training with item_features = '[0-9a-f]+', got '"
    ):
        SASREC.fit(events, item_features=turned, num_epochs=2, checkpoint=tmp_path, **TRAINING)


def test_items_of_an_update_start_from_their_neighbours_rows_and_their_own_features(events):
    model = fit(events)
    of = model.known.item_ids.encode(["i3", "i9"])
    rows = model.item_embedding_layer.weight.detach()[of].mean(0)
    vectors = model.item_table().detach()[of].mean(0)
    projection = model.content.projection.detach().clone()
    columns = {
        "user": ["new"] * 3 + ["other"] * 3,
        "item": ["i3", "i40", "i9", "i3", "i99", "i9"],
        "timestamp": [9000, 9001, 9002, 9000, 9001, 9002],
    }
    week = Interactions.from_dataframe(pa.table(columns))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "take_step", lambda *_: torch.zeros((), dtype=torch.float64))
        with pytest.warns(UserWarning, match="item_features lack 1 of 2 items, such as 'i99'"):
            report = model.update(week, item_features=OF_NEW, num_epochs=1, verbose=False)

    assert report.new_items == 2
    known, unknown = model.item_table().detach()[model.known.item_ids.encode(["i40", "i99"])]
    assert_close(known, rows + projection @ torch.tensor(OF_NEW["i40"]).float())
    assert_close(unknown, vectors)


def test_an_update_without_features_of_new_items_is_one(events):
    model = fit(events)
    week = Interactions.from_dataframe(
        pa.table({"user": ["u1"] * 3, "item": ["i99", "i3", "i5"], "timestamp": [9001, 9002, 9003]})
    )

    assert model.update(week, num_epochs=1, verbose=False).new_items == 1

    assert not model.content.features[-1].any()


def test_a_model_without_features_is_not_updated_with_some(events):
    model = SASREC.fit(events, num_epochs=1, **TRAINING)
    week = Interactions.from_dataframe(pa.table({"user": ["u1"], "item": ["i99"]}), timestamp=None)

    with pytest.raises(ValueError, match="events must have times"):
        model.update(week, item_features=OF_NEW)
    week = Interactions.from_dataframe(
        pa.table({"user": ["u1"], "item": ["i99"], "timestamp": [9000]})
    )
    with pytest.raises(ValueError, match="item_features must be None for a model that was trained"):
        model.update(week, item_features=OF_NEW)


def test_features_of_other_items_alone_are_refused(events):
    with pytest.raises(ValueError, match="item_features have none of the 40 items"):
        SASREC.fit(events, item_features=OF_NEW, **TRAINING)
