"""What other runtimes make of an exported model is what `predict` and `recommend` say."""

import numpy as np
import pytest
import torch
from support.factories import perturbed, tiny_model

from ssept_ext import SASREC, SSEPT
from ssept_ext.serving.by_raw_id import rank_events
from ssept_ext.serving.export import (
    INPUTS,
    INPUTS_OF_TOP_K,
    Scorer,
    TopItems,
    export_onnx,
    export_program,
)

NUM_ITEMS, T = 200, 50


def make(kind=SSEPT, num_blocks=2, **arguments):
    torch.manual_seed(
        0
    )  # for models of the whole module, too, which other tests would leave to chance
    sizes = {"item_num": NUM_ITEMS, "user_num": 9, "embedding_dim": 5, "user_embedding_dim": 3}
    sizes |= {"seq_max_len": T, "num_blocks": num_blocks, "ffn_dim": 4}
    return perturbed(tiny_model(kind, **sizes, **arguments))


def batch(size, candidates):
    """Histories of all lengths, one of them empty and one with a hole."""
    generator = torch.Generator().manual_seed(0)
    seq = torch.randint(1, NUM_ITEMS + 1, (size, T), generator=generator)
    for row in range(size):
        seq[row, : (row * 2) % (T + 2)] = 0
    seq[size // 2, T - 2] = 0
    return {
        "user": torch.arange(size) % 9 + 1,
        "input_seq": seq,
        "candidate": torch.randint(0, NUM_ITEMS + 1, (size, candidates), generator=generator),
    }


MODELS = [
    pytest.param(lambda: make(), id="SSEPT"),
    pytest.param(lambda: make(SASREC, architecture="original", attention_num_heads=5), id="SASREC"),
    pytest.param(lambda: make(architecture="pre-ln", attention_num_heads=2), id="pre-ln"),
    pytest.param(
        lambda: make(architecture="gated", attention_num_heads=4, position_bias=True), id="gated"
    ),
    pytest.param(lambda: make(tie_item_embeddings=False), id="two tables of items"),
]


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return request.param()


def test_an_exported_program_scores_as_predict_for_any_sizes(model, tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(export_program(model), path)

    program = torch.export.load(path).module()

    for size, candidates in ((1, 1), (5, 9), (8, 1)):
        inputs = batch(size, candidates)
        torch.testing.assert_close(
            program(*(inputs[name] for name in INPUTS)), model.predict(inputs)
        )


def test_onnxruntime_scores_as_predict_for_any_sizes(model, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    export_onnx(model, path)

    session = onnxruntime.InferenceSession(path)

    names = [argument.name for argument in session.get_inputs()]
    assert set(names) <= set(INPUTS)
    assert [argument.name for argument in session.get_outputs()] == ["score"]
    for size, candidates in ((1, 1), (5, 9), (8, 1)):
        inputs = batch(size, candidates)
        (scores,) = session.run(None, {name: inputs[name].numpy() for name in names})
        torch.testing.assert_close(torch.from_numpy(scores), model.predict(inputs))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def histories(size):
    """As `batch`, without the hole and the empty one, and with user 0, who is unknown."""
    inputs = batch(size + 2, 1)
    inputs["input_seq"][:, -2:] = torch.arange(1, 3)
    inputs["user"][0] = 0
    return [inputs[name][:size] for name in INPUTS[:2]]


def answered(model, users, sequences, ks):
    """What `recommend` says without the items of the sequences, and 0 with the score -inf where there are no more."""
    width = min(max(ks), model.item_num)
    items = np.zeros((len(users), width), np.int64)
    scores = np.full((len(users), width), -np.inf, np.float32)
    for row, (user, seq, k) in enumerate(zip(users, sequences, ks, strict=True)):
        found = rank_events(model, np.array([user]), [(seq[seq > 0].numpy(), None)], k)
        items[row, : found.items.shape[1]], scores[row, : found.items.shape[1]] = found
    return items, scores


@pytest.fixture(scope="module")
def small():
    return make(num_blocks=1)


@pytest.fixture(scope="module")
def program(small):
    """With the answer inside."""
    return export_program(small, top_k=True).module()


@pytest.fixture(scope="module")
def onnx_file(small, tmp_path_factory):
    """With the answer inside."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(small, path, top_k=True)
    return path


KS = [[7], [3, 9, 1], [1000, 1, 5, 2, 9, 4]]


@pytest.mark.parametrize("ks", KS)
def test_a_program_with_the_answer_inside_gives_what_recommend_gives(small, program, ks):
    inputs = histories(len(ks))

    items, scores = program(*inputs, torch.tensor(ks))

    expected = answered(small, *inputs, ks)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_allclose(scores.detach(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ks", KS)
def test_an_onnx_file_with_the_answer_inside_gives_what_recommend_gives(small, onnx_file, ks):
    session = pytest.importorskip("onnxruntime").InferenceSession(onnx_file)
    inputs = histories(len(ks))
    given = zip(INPUTS_OF_TOP_K, [*inputs, torch.tensor(ks)], strict=True)

    items, scores = session.run(["item", "score"], {name: x.numpy() for name, x in given})

    expected = answered(small, *inputs, ks)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, -(2**63)])
def test_no_items_are_a_column_of_zeros(program, k):
    items, scores = program(*histories(1), torch.tensor([k]))

    assert items.tolist() == [[0]]
    assert scores.tolist() == [[-torch.inf]]


def test_where_no_items_are_left_the_answer_is_0():
    torch.manual_seed(0)
    model = SASREC(item_num=3, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])

    items, scores = TopItems(model)(
        torch.tensor([0]), torch.tensor([[0, 1, 3, 1]]), torch.tensor([3])
    )

    assert items.tolist() == [[2, 0, 0]]
    assert scores[0, 1:].tolist() == [-torch.inf, -torch.inf]


def test_a_number_of_items_is_no_option_of_the_export():
    with pytest.raises(ValueError, match="top_k must be True or False, got 7"):
        export_program(make(), top_k=7)


def test_a_program_keeps_its_parameters():
    model, inputs = make(), batch(5, 9)
    before, program = model.predict(inputs), export_program(model).module()

    with torch.no_grad():
        model.item_embedding_layer.weight.zero_()

    torch.testing.assert_close(program(*(inputs[name] for name in INPUTS)), before)


def test_exporting_draws_nothing_from_torchs_generator():
    model, before = make(), torch.get_rng_state()

    Scorer(model)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_too_large_for_onnx_is_refused(monkeypatch, tmp_path):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("ssept_ext.serving.export.MAX_ONNX_SIZE", 1000)

    with pytest.raises(
        ValueError, match="parameters take .* bytes: an ONNX file must be below 1000"
    ):
        export_onnx(make(), tmp_path / "model.onnx")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [export_program, lambda model: export_onnx(model, "unused")])
def test_a_model_that_needs_times_is_refused(export):
    with pytest.raises(ValueError, match="time_bias .*the exported program takes no times"):
        export(make(time_bias=True))


@pytest.mark.parametrize("user", [4, None])
@pytest.mark.parametrize("kind", [SSEPT, SASREC])
def test_an_inner_product_search_gives_the_list_of_recommend(kind, user):
    faiss = pytest.importorskip("faiss")
    model, history, k = make(kind).double(), [5, 9, 5, 200, 17, 4, 200, 131], 20
    if user is None and kind is SSEPT:  # one who is unknown has the mean vector
        with torch.no_grad():
            model.user_embedding_layer.weight[1] = model.user_embedding_layer.weight[2:].mean(0)
    index = faiss.IndexFlatIP(5)
    index.add(model.item_vectors().astype(np.float32))

    state = model.user_state(history, user)
    distances, rows = index.search(state[None].astype(np.float32), k + len(set(history)))

    items, scores = model.recommend({user or 1: history}, k=k)
    found = [(row + 1, d) for row, d in zip(rows[0], distances[0], strict=True)]
    unseen = [(item, d) for item, d in found if item not in history][:k]
    assert [item for item, _ in unseen] == items[0].tolist()
    gaps = scores[0] - np.array([d for _, d in unseen])
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-4)


def test_vectors_are_float32_or_wider():
    assert make().half().item_vectors().dtype == np.float32
    assert make().half().user_state([1]).dtype == np.float32
    assert make().double().user_state([1]).dtype == np.float64
    assert make().item_vectors().shape == (NUM_ITEMS, 5)


@pytest.mark.parametrize(
    ("history", "user", "error", "message"),
    [
        ([], 1, ValueError, "history must hold an item that the model knows, got 0 others"),
        ([201], 1, IndexError, "item has id 201, outside the model's table of 201 rows"),
        (5, 1, TypeError, "history must be a sequence of ids, got int 5"),
        ({5: 1}, 1, TypeError, "history must be a sequence of ids, got dict"),
        ([0], 1, ValueError, "item id must be an integer from 1"),
        ([1], 10, IndexError, "user has id 10, outside the model's table of 10 rows"),
        ([1], 0, ValueError, "user id must be an integer from 1"),
    ],
)
def test_bad_input_is_named(history, user, error, message):
    with pytest.raises(error, match=message):
        make().user_state(history, user)
