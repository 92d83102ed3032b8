"""A server follows its folder, and outlives what happens to that."""

import gc
import weakref

import pytest
import torch

from ssept_ext import SASREC, SSEPT
from ssept_ext.service.current_model import CurrentModel

pytest.importorskip("fastapi")

SHAPE = {"seq_max_len": 4, "embedding_dim": 4, "conv_dims": [4, 4]}


def save(folder, num_items=9):
    SASREC(item_num=num_items, **SHAPE).save_pretrained(folder)


def current(folder):
    return CurrentModel(folder, "auto", torch.device("cpu"))


def test_a_new_model_in_the_folder_replaces_the_old_one(tmp_path):
    save(tmp_path)
    model = current(tmp_path)

    save(tmp_path, num_items=12)

    assert model.refresh() is True
    assert model.loaded.model.item_num == 12
    assert model.refresh() is False


@pytest.mark.parametrize("damage", ["truncated", "removed", "not JSON", "diverged"])
def test_a_damaged_folder_leaves_the_old_model_and_says_so(tmp_path, damage):
    save(tmp_path)
    model = current(tmp_path)
    (weights,) = tmp_path.glob("model-*.safetensors")
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "removed":
        for path in tmp_path.iterdir():
            path.unlink()
        tmp_path.rmdir()
    elif damage == "not JSON":
        (tmp_path / "config.json").write_text("{")
    else:
        diverged = SASREC(item_num=9, **SHAPE)
        torch.nn.init.constant_(diverged.item_embedding_layer.weight, torch.nan)
        diverged.save_pretrained(tmp_path)

    assert model.refresh() is False
    assert model.error is not None
    assert model.failures == 1
    assert model.loaded.model.item_num == 9


def test_a_folder_that_is_whole_again_is_loaded(tmp_path):
    save(tmp_path)
    model = current(tmp_path)
    (tmp_path / "config.json").write_text("{")
    model.refresh()
    (tmp_path / "config.json").unlink()

    save(tmp_path, num_items=12)

    assert model.refresh() is True
    assert model.error is None
    assert model.loaded.model.item_num == 12


def test_the_mean_of_the_users_is_computed_once(tmp_path):
    arguments = SHAPE | {"embedding_dim": 2}
    SSEPT(item_num=9, user_num=3, **arguments).save_pretrained(tmp_path)

    model = current(tmp_path).loaded.model

    expected = model.user_embedding_layer.weight[1:].mean(0)
    torch.testing.assert_close(model.mean_user(), expected)
    assert model.mean_user() is model.mean_user()


def test_a_folder_without_a_model_is_an_error_at_the_start(tmp_path):
    with pytest.raises(OSError, match="config.json"):
        current(tmp_path)


@pytest.mark.parametrize("table", [None, "int8"])
def test_the_vectors_of_items_are_made_of_features_once(tmp_path, table):
    features = torch.rand(10, 3)
    features[0] = 0
    saved = SASREC(item_num=9, item_features=features, **SHAPE)
    torch.nn.init.normal_(saved.content.projection)
    saved.save_pretrained(tmp_path)

    served = CurrentModel(tmp_path, "auto", torch.device("cpu"), table).loaded.model

    assert served.content is None
    found, expected = (m.recommend({1: [3, 5]}, k=3).items.tolist() for m in (served, saved))
    assert found == expected


def test_a_replaced_model_is_freed_without_the_garbage_collector(tmp_path):
    # A running server has frozen what was there when it began.
    save(tmp_path)
    model = current(tmp_path)
    replaced = weakref.ref(model.loaded.model)
    gc.freeze()
    try:
        save(tmp_path, num_items=12)
        model.refresh()

        assert replaced() is None
    finally:
        gc.unfreeze()
