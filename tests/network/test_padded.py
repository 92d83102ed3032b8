"""recommenders' padded interface: padding counts for nothing, and bad input is named."""

import numpy as np
import pytest
import torch
from support.factories import perturbed
from support.padded import padded_inputs, tiny
from support.tolerances import relative_error

from ssept_ext import SASREC, pack


def test_predict_of_the_newest_token_is_the_encoders_last_row():
    model = perturbed(tiny()).double()
    inputs = padded_inputs(positive=np.full((3, 6), 4), negative=np.full((3, 6), 9))
    positive, negative, _ = model(inputs)
    newest = torch.cat([positive.view(3, 6)[:, -1:], negative.view(3, 6)[:, -1:]], 1)
    candidates = {"user": inputs["users"], "candidate": np.array([[4, 9]] * 3)}
    assert relative_error(model.predict(inputs | candidates), newest) < 1e-12


def test_fewer_columns_than_seq_max_len_are_the_newest():
    model = perturbed(tiny()).double()
    inputs = {"user": [1], "candidate": np.arange(1, 21)[None]}
    whole = model.predict(inputs | {"input_seq": [[0, 0, 0, 3, 4, 5]]})
    cut = model.predict(inputs | {"input_seq": [[3, 4, 5]]})
    assert torch.equal(cut, whole)


def test_logits_at_padding_are_exactly_zero():
    positive, negative, is_target = tiny()(padded_inputs())
    assert is_target.sum() == 11
    assert (positive[is_target == 0] == 0).all()
    assert (negative[is_target == 0] == 0).all()
    assert (positive[is_target == 1] != 0).all()


def test_a_row_of_padding_gives_finite_scores_and_gradients():
    model = tiny()
    rows = {k: np.zeros_like(v) for k, v in padded_inputs().items()}
    inputs = {k: np.concatenate([v, rows[k]]) for k, v in padded_inputs().items()}
    model.loss_function(*model(inputs)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    scores = model.predict({"user": [0], "input_seq": [[0] * 6], "candidate": [[1, 2]]})
    assert torch.isfinite(scores).all()


def test_each_row_is_scored_with_its_own_user_also_where_one_is_empty():
    model = perturbed(tiny()).double()
    seqs, users = np.array([[0, 0, 0, 0, 3, 4], [0] * 6]), np.array([1, 2])  # two tokens, two rows
    candidates = np.array([[7, 8], [7, 8]])
    together = model.predict({"user": users, "input_seq": seqs, "candidate": candidates})
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = {"user": users[one], "input_seq": seqs[one], "candidate": candidates[one]}
        assert relative_error(together[one], model.predict(alone)) < 1e-12


def test_create_combined_dataset_left_pads_and_keeps_the_newest():
    inputs, target = tiny().create_combined_dataset(
        [3, 4], [[1, 2], [1, 2, 3, 4, 5, 6, 7]], [[2, 3], [2, 3, 4, 5, 6, 7, 8]], [[9, 9], [9] * 7]
    )
    assert inputs["users"].tolist() == [[3], [4]]
    assert inputs["input_seq"].tolist() == [[0, 0, 0, 0, 1, 2], [2, 3, 4, 5, 6, 7]]
    assert inputs["positive"][0].tolist() == [0, 0, 0, 0, 2, 3]
    assert target[:, 0].tolist() == [1] * 12 + [0] * 12


def test_packing_drops_zeros_between_events_and_keeps_columns_as_positions():
    batch = pack(torch.tensor([1, 2]), torch.tensor([[0, 5, 0, 6], [0, 0, 0, 0]]))
    assert batch.items.tolist() == [5, 6]
    assert batch.positions.tolist() == [1, 3]
    assert batch.cu_seqlens.tolist() == [0, 2, 2]
    assert batch.max_seqlen == 2


def test_packing_keeps_one_or_many_negatives():
    seq = torch.tensor([[0, 5, 6], [0, 0, 0]])
    many = torch.arange(12).view(2, 3, 2)
    one = pack(torch.tensor([1, 2]), seq, seq, many[..., 0])
    assert one.negatives.tolist() == [[2], [4]]
    assert pack(torch.tensor([1, 2]), seq, seq, many).negatives.tolist() == [[2, 3], [4, 5]]
    assert pack(torch.tensor([2]), seq[1:], seq[1:], seq[1:]).negatives.shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"input_seq": np.full((3, 6), 21)}, IndexError, "input_seq has id 21, .* 21 rows"),
        ({"positive": np.full((3, 6), -1)}, IndexError, "positive has id -1, outside"),
        ({"negative": np.full((3, 6), 99)}, IndexError, "negative has id 99, outside"),
        ({"users": np.array([[1], [6], [1]])}, IndexError, "users has id 6, outside .* 6 rows"),
        ({"users": np.array([[1], [2]])}, ValueError, "users must have 3 rows"),
        ({"users": np.ones((3, 2), int)}, ValueError, "users must have"),
        ({"input_seq": np.ones((3, 6))}, ValueError, "input_seq must hold integers, got .*float64"),
        ({"input_seq": np.ones(6, int)}, ValueError, "input_seq must have two dimensions"),
        ({"positive": np.ones((3, 5), int)}, ValueError, r"positive must have shape \(3, 6\)"),
        (
            {k: np.ones((3, 7), int) for k in ("input_seq", "positive", "negative")},
            ValueError,
            "input_seq has 7 columns, more than seq_max_len 6",
        ),
    ],
)
def test_wrong_model_input_is_named(changes, error, match):
    with pytest.raises(error, match=match):
        tiny()(padded_inputs(**changes))


def test_a_missing_model_input_is_named():
    inputs = padded_inputs()
    del inputs["users"]
    with pytest.raises(ValueError, match='the input lacks "users"; it has input_seq'):
        tiny()(inputs)
    positive, _, _ = tiny(SASREC)(inputs)  # has no users
    assert positive.shape == (18, 1)


@pytest.mark.parametrize(
    ("candidate", "error", "match"),
    [
        (np.array([[21]] * 3), IndexError, "candidate has id 21"),
        (np.array([[0.5]] * 3), ValueError, "candidate must hold integers"),
        ([["i1"]] * 3, ValueError, "candidate must be an array of integers, .*item_ids.encode"),
        (np.array([["i1"]] * 3), ValueError, "candidate must be an array of integers"),
        ([[1], [1, 2], [3]], ValueError, "candidate must be an array of integers"),
        (np.array([[1]] * 2), ValueError, "candidate must have 3 rows, as input_seq has, got 2"),
    ],
)
def test_wrong_candidates_are_named(candidate, error, match):
    inputs = padded_inputs()
    with pytest.raises(error, match=match):
        tiny().predict(
            {"user": inputs["users"], "input_seq": inputs["input_seq"], "candidate": candidate}
        )


@pytest.mark.parametrize(
    ("name", "caller", "instead"),
    [
        ("forward", "train_model", "training_loss"),
        ("loss_function", "train_model", "training_loss"),
        ("create_combined_dataset", "train_model", "training_loss"),
        ("predict", "evaluate", "score"),
    ],
)
def test_an_override_that_nothing_calls_is_refused(name, caller, instead):
    mixin = type("Mixin", (), {name: lambda self, *args: None})

    for bases, methods in (((SASREC,), vars(mixin)), ((mixin, SASREC), {})):
        methods = {key: value for key, value in methods.items() if key == name}
        with pytest.raises(
            TypeError,
            match=f"Mine overrides {name}, which {caller} does not call: override {instead}",
        ):
            type("Mine", bases, methods)


def test_an_override_is_allowed_beside_those_of_its_callers():
    type("Mine", (SASREC,), {name: lambda self: None for name in ("forward", "train_model")})
