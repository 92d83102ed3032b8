"""Constructor arguments: their defaults, and how wrong ones are named."""

import inspect
from dataclasses import MISSING, fields
from inspect import Parameter

import pytest
from support.padded import tiny

from ssept_ext import SASREC, SSEPT


def test_defaults_are_those_of_recommenders():
    config = SSEPT(item_num=3, user_num=3).config
    assert (config.seq_max_len, config.num_blocks, config.embedding_dim) == (100, 2, 100)
    assert (config.dropout_rate, config.l2_reg, config.num_neg_test) == (0.5, 0.0, 100)
    assert (config.user_embedding_dim, config.item_embedding_dim) == (100, 100)
    assert list(config.conv_dims) == [200, 200]
    assert list(SASREC(item_num=3).config.conv_dims) == [100, 100]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"unknown": 1}, TypeError, 'SSEPT has no argument "unknown"'),
        ({"item_num": 0}, ValueError, "item_num must be an integer of at least 1, got 0"),
        ({"item_num": 2**31}, ValueError, "item_num must be at most 2147483647, got 2147483648"),
        ({"conv_dims": 5}, ValueError, "conv_dims must be two widths, got 5"),
        ({"item_num": 2.0}, ValueError, "item_num must be an integer of at least 1, got 2.0"),
        ({"user_num": True}, ValueError, "user_num must be an integer of at least 1, got True"),
        ({"seq_max_len": -1}, ValueError, "seq_max_len must be an integer .* got -1"),
        ({"num_blocks": 0}, ValueError, "num_blocks must be"),
        ({"embedding_dim": "4"}, ValueError, "embedding_dim must be an integer .* got '4'"),
        ({"user_embedding_dim": 0}, ValueError, "user_embedding_dim must be .* got 0"),
        ({"num_neg_test": 0}, ValueError, "num_neg_test must be"),
        (
            {"conv_dims": [8, 9]},
            ValueError,
            r"conv_dims .* the second the hidden size 8, got \[8, 9\]",
        ),
        ({"conv_dims": [8]}, ValueError, r"conv_dims must be two widths.* got \[8\]"),
        ({"attention_num_heads": 3}, ValueError, "attention_num_heads must divide .* 8, got 3"),
        ({"dropout_rate": 1.0}, ValueError, r"dropout_rate must be in \[0, 1\), got 1.0"),
        ({"dropout_rate": float("nan")}, ValueError, "dropout_rate must be in .* got nan"),
        ({"l2_reg": -1e-3}, ValueError, "l2_reg must be finite and at least 0, got -0.001"),
        ({"architecture": "other"}, ValueError, "architecture must be one of .* got 'other'"),
        ({"backend": "gpu"}, ValueError, 'backend must be one of .* got "gpu"'),
        (
            {"embedding_dim": 300, "conv_dims": [4, 600]},
            ValueError,
            "heads of at most 256 features, got 2 heads of 300",
        ),
    ],
)
def test_a_wrong_constructor_argument_is_named(changes, error, match):
    with pytest.raises(error, match=match):
        tiny(**{"conv_dims": [12, 8]} | changes)


@pytest.mark.parametrize(
    ("cls", "missing"), [(SASREC, "item_num"), (SSEPT, "user_num")], ids=["SASREC", "SSEPT"]
)
def test_a_missing_constructor_argument_is_named(cls, missing):
    arguments = {"item_num": 3, "user_num": 3} if cls is SSEPT else {"item_num": 3}
    del arguments[missing]
    with pytest.raises(TypeError, match=f"{cls.__name__} needs the argument {missing}"):
        cls(**arguments)


@pytest.mark.parametrize("kind", [SASREC, SSEPT])
def test_the_signature_lists_every_argument_with_its_default(kind):
    parameters = inspect.signature(kind).parameters

    declared = {field.name: field.default for field in fields(kind.config_class)}
    assert {"item_num", "seq_max_len", "sse_item_prob"} <= declared.keys()
    expected = {name: Parameter.empty if x is MISSING else x for name, x in declared.items()}
    assert {name: p.default for name, p in parameters.items()} == expected | {
        "backend": "auto",
        "item_features": None,
    }
    assert {p.kind for p in parameters.values()} == {Parameter.KEYWORD_ONLY}
    required = {"item_num": 3} | ({"user_num": 2} if kind is SSEPT else {})
    defaults = {name: p.default for name, p in parameters.items() if name not in required}
    assert kind(**required, **defaults).config == kind(**required).config
