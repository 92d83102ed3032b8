"""`similar_items`, by index and under raw ids."""

import numpy as np
import pytest
import torch
from support.raw_ids import NUM_ITEMS, frame_columns, rows

from ssept_ext import SASREC


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_similar_items_are_the_closest_by_cosine(dtype):
    model = SASREC(item_num=300, embedding_dim=4, conv_dims=[4, 4]).to(dtype)
    torch.nn.init.normal_(model.item_embedding_layer.weight)
    with torch.no_grad():
        model.item_embedding_layer.weight[7] = 0
        model.item_embedding_layer.weight[150] = 2 * model.item_embedding_layer.weight[5]
    asked = [5, 300, 1, 150, 7, 5]

    items, scores = model.similar_items(asked, k=299)

    vectors = model.item_embedding_layer.weight.detach()[1:]
    wide = vectors.to(torch.promote_types(dtype, torch.float32))
    cosines = torch.nn.functional.cosine_similarity(wide[:, None], wide, dim=2)
    for row, item in enumerate(asked):
        assert sorted([item, *items[row]]) == list(range(1, 301))
        np.testing.assert_allclose(scores[row], cosines[item - 1, items[row] - 1], atol=1e-5)
        assert (np.diff(scores[row]) <= 0).all()
    assert (items[0, 0], items[3, 0]) == (150, 5)
    assert not scores[4].any()
    assert (np.diff(items[4]) > 0).all()  # equal ones by rising id


def test_similar_items_under_raw_ids(model):
    frame = model.similar_items(["i3", "i9"], k=20)

    assert frame_columns(frame) == ["item", "similar_item", "score", "rank"]
    ids = model.known.item_ids
    found = model.known.item_ids.encode([row[1] for row in rows(frame)]).reshape(2, NUM_ITEMS - 1)
    for item, row in zip(["i3", "i9"], found, strict=True):
        assert sorted([*ids.encode([item]), *row]) == list(range(1, NUM_ITEMS + 1))
    assert [row[3] for row in rows(frame)] == 2 * [*range(1, NUM_ITEMS)]


@pytest.mark.parametrize(
    ("items", "k", "error", "message"),
    [
        (["new"], 1, KeyError, "item 'new' at position 0 is unknown"),
        ([3], 1, TypeError, "item ids must be str"),
        ("i3", 1, TypeError, "items must be a sequence of ids, got str 'i3'"),
        (["i3"], 0, ValueError, "k must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_for_similar_items_is_named(model, items, k, error, message):
    with pytest.raises(error, match=message):
        model.similar_items(items, k)


def test_a_number_outside_the_table_is_named():
    with pytest.raises(IndexError, match="item has id 4, outside the model's table of 4 rows"):
        SASREC(item_num=3, embedding_dim=4, conv_dims=[4, 4]).similar_items([4])


def test_one_item_instead_of_a_sequence_is_named():
    with pytest.raises(TypeError, match="items must be a sequence of ids, got int 3"):
        SASREC(item_num=3, embedding_dim=4, conv_dims=[4, 4]).similar_items(3)
