"""`explain`: what each event of a history is worth to a score, and how much the last block attends to it."""

import numpy as np
import pytest
import torch
from support.factories import perturbed, tiny_model
from support.raw_ids import HISTORIES, SIZES, interactions

from ssept_ext import SASREC, SSEPT
from ssept_ext.network.layers import NO_DROPOUT, MultiHeadAttention
from ssept_ext.serving.explanation import weights_of

T = 6
KINDS = [
    pytest.param({"kind": SSEPT}, id="SSEPT"),
    pytest.param({"kind": SASREC, "architecture": "original", "num_blocks": 1}, id="SASREC"),
    pytest.param({"kind": SSEPT, "architecture": "gated", "position_bias": True}, id="gated"),
    pytest.param(
        {"kind": SASREC, "architecture": "pre-ln", "position_bias": True, "time_bias": True},
        id="pre-ln, times",
    ),
]


def make(kind, **arguments):
    torch.manual_seed(0)
    sizes = {"item_num": 30, "user_num": 9, "embedding_dim": 8, "user_embedding_dim": 4}
    settings = {"attention_num_heads": 2, "num_blocks": 2, "ffn_dim": 4} | arguments
    return perturbed(tiny_model(kind, seq_max_len=T, **sizes, **settings)).double()


def asked(model, history):
    if not model.config.time_bias:
        return {}
    return {"history_times": [10 * i for i in range(len(history))], "at": 1000}


def score(model, history, item, keys):
    """The score of an item without the user's part, from the vectors that rank it."""
    times = {} if not keys else {"history_times": keys["history_times"], "at": keys["at"]}
    return model.item_vectors()[item - 1] @ model.user_state(history, **times)


@pytest.mark.parametrize("arguments", KINDS)
def test_an_effect_is_the_loss_of_the_score_without_the_event(arguments):
    model, history = make(**arguments), [3, 7, 3, 12]
    keys = asked(model, history)

    frame = model.explain(5, history, **keys)

    whole = score(model, history, 5, keys)
    for place, effect in enumerate(frame["effect"]):
        rest = history[:place] + history[place + 1 :]
        times = [t for i, t in enumerate(keys.get("history_times", [])) if i != place]
        without = score(model, rest, 5, keys and keys | {"history_times": times})
        assert effect == pytest.approx(whole - without, abs=1e-9)
    assert list(frame["item"]) == history


@pytest.mark.parametrize("arguments", KINDS)
def test_weights_are_those_that_mix_the_values_in_the_last_block(arguments, monkeypatch):
    model, history, calls = make(**arguments), [3, 7, 3, 12], []
    attend = MultiHeadAttention.forward

    def noting(self, queries, keys, *rest, **options):
        calls.append((self, queries, keys))
        return attend(self, queries, keys, *rest, **options)

    monkeypatch.setattr(MultiHeadAttention, "forward", noting)
    frame = model.explain(5, history, **asked(model, history))

    attention, query, keys = calls[-1]
    with torch.inference_mode():
        weights = weights_of(attention, query, keys)
        values = attention.V(keys.x).view(len(history), attention.num_heads, -1)
        attended = attend(attention, query, keys, NO_DROPOUT, 0, residual=False)
    np.testing.assert_allclose(frame["attention"], weights.mean(0), rtol=1e-9)
    mixed = torch.einsum("hk,khd->hd", weights, values).reshape(1, -1)
    torch.testing.assert_close(mixed, attended)


def test_only_events_that_the_model_sees_are_explained():
    model = make(SASREC)

    frame = model.explain(5, list(range(1, 11)))

    assert list(frame["item"]) == list(range(5, 11))


def test_a_stored_history_is_explained_by_raw_ids():
    model = SSEPT.fit(interactions(), **SIZES, num_epochs=1)

    stored, given = (
        model.explain("i9", user="anna"),
        model.explain("i9", HISTORIES["anna"], user="anna"),
    )

    assert list(stored["item"]) == HISTORIES["anna"]
    assert list(stored["effect"]) == list(given["effect"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("i9",), ValueError, "history must be given, or a user"),
        (("gone", ["i1"]), KeyError, "'gone' at position 0 is unknown"),
        ((9, ["i1"]), TypeError, "item ids must be str"),
        (("i9", []), ValueError, "history must hold an item"),
    ],
)
def test_what_cannot_be_explained_is_named(arguments, error, message):
    model = SSEPT.fit(interactions(), **SIZES, num_epochs=1)

    with pytest.raises(error, match=message):
        model.explain(*arguments)


def test_an_unknown_user_has_no_stored_history():
    model = SSEPT.fit(interactions(), **SIZES, num_epochs=1)

    with pytest.raises(KeyError, match="nobody"):
        model.explain("i9", user="nobody")
