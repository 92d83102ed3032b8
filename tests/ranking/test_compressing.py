"""Models that rank by smaller copies of their item vectors."""

import numpy as np
import pytest
import torch
from support.factories import perturbed, tiny_model

from ssept_ext import SASREC
from ssept_ext.data.synthetic import synthetic

HISTORIES = {1: [5, 9, 300], 2: [17, 4, 200, 131]}
every_dtype = pytest.mark.parametrize("dtype", ["float16", "int8"])


def model_of(dtype=torch.float32, **arguments):
    sizes = {"item_num": 300, "embedding_dim": 8, "ffn_dim": 8}
    return perturbed(tiny_model(SASREC, **sizes, **arguments)).to(dtype)


def rounded(weight, dtype):
    """What is left of vectors in the type, as float32."""
    if dtype == "float16":
        return weight.half().float()
    step = weight.abs().amax(1, keepdim=True) / 127
    step[step == 0] = 1
    return (weight / step).round() * step


@pytest.mark.parametrize("cosines", [{}, {"cosine_temperature": 0.1}], ids=["products", "cosines"])
@every_dtype
def test_items_are_ranked_by_the_rounded_vectors(dtype, cosines):
    model = model_of(**cosines)
    weight = model.item_embedding_layer.weight.detach()
    state = torch.from_numpy(model.user_state(HISTORIES[1]))

    items, scores = model.compress(dtype).recommend({1: HISTORIES[1]}, k=20, exclude_seen=False)

    vectors = rounded(weight, dtype)
    if cosines:
        vectors = vectors / weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
    expected = (vectors[1:] @ state).topk(20)
    np.testing.assert_allclose(scores[0], expected.values, rtol=1e-5)
    assert items[0].tolist() == (expected.indices + 1).tolist()


@every_dtype
def test_seen_items_and_candidates_are_those_of_the_model(dtype):
    model = model_of()
    candidates = [4, 17, 50, 200, 299]  # three of which the second user has seen

    items, _ = model.compress(dtype).recommend(HISTORIES, k=9, candidates=candidates)

    assert sorted(items[0]) == candidates
    assert sorted(items[1]) == [0, 0, 0, 50, 299]


@every_dtype
def test_similar_items_are_about_as_similar(dtype):
    model = model_of()
    with torch.no_grad():
        model.item_embedding_layer.weight[7] = 0
    exact = model.similar_items([5, 7], k=299)

    items, cosines = model.compress(dtype).similar_items([5, 7], k=299)

    order = np.argsort(items, 1)
    np.testing.assert_allclose(
        np.take_along_axis(cosines, order, 1),
        np.take_along_axis(exact.scores, np.argsort(exact.items, 1), 1),
        atol=0.02 if dtype == "int8" else 1e-3,
    )
    assert not cosines[1].any()


def test_int8_holds_vectors_of_any_length():
    model = model_of()
    with torch.no_grad():
        model.item_embedding_layer.weight[3] *= 1e20
        model.item_embedding_layer.weight[4] *= 1e-20

    items, scores = model.compress("int8").recommend({1: [5]}, k=300, exclude_seen=False)

    exact = model.recommend({1: [5]}, k=300, exclude_seen=False)
    for item in (3, 4):
        expected = exact.scores[exact.items == item]
        np.testing.assert_allclose(scores[items == item], expected, rtol=0.05)


def test_float64_is_ranked_in_float32():
    model = model_of(torch.float64)

    items, scores = model.compress("float16").recommend(HISTORIES, k=5, exclude_seen=False)

    exact = model.recommend(HISTORIES, k=300, exclude_seen=False)
    for row in range(2):
        of_exact = dict(zip(exact.items[row].tolist(), exact.scores[row], strict=True))
        expected = [of_exact[item] for item in items[row].tolist()]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-2, atol=1e-2)


def test_the_model_itself_stays_exact():
    model = model_of()
    exact = model.recommend(HISTORIES)

    compressed = model.compress("int8")

    again = model.recommend(HISTORIES)
    np.testing.assert_array_equal(again.scores, exact.scores)
    assert (compressed.recommend(HISTORIES).scores != exact.scores).any()
    assert compressed.state_dict().keys() == model.state_dict().keys()


def test_evaluation_ranks_by_the_rounded_vectors():
    data = synthetic(num_users=30)
    model = perturbed(tiny_model(SASREC, item_num=data.itemnum, embedding_dim=8, ffn_dim=8))

    ranks = model.compress("int8").evaluate_ranks(data, k=10).ranks

    exact = model.evaluate_ranks(data, k=10).ranks
    assert (ranks != exact).any()
    assert np.abs(ranks - exact).mean() < 0.05 * data.itemnum


def test_a_model_that_was_trained_further_must_be_compressed_again():
    model = model_of()
    compressed = model.compress("int8")
    with torch.no_grad():
        model.item_embedding_layer.weight[5] += 1

    with pytest.raises(ValueError, match="the model has changed since compress"):
        compressed.recommend(HISTORIES)
    with pytest.raises(ValueError, match="the model has changed since compress"):
        compressed.similar_items([3])


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("int4", 1.0, "dtype must be one of .*float16.*int8.*, got 'int4'"),
        ("float16", 70000.0, r"item 9 has an element of ±70000, which float16 cannot hold"),
        ("float16", torch.nan, "item 9 has an element of ±nan"),
        ("int8", torch.inf, "item 9 has an element of ±inf, which int8 cannot hold"),
    ],
)
def test_what_cannot_be_compressed_is_named(dtype, value, message):
    model = model_of()
    with torch.no_grad():
        model.item_embedding_layer.weight[9, 2] = value

    with pytest.raises(ValueError, match=message):
        model.compress(dtype)
