"""Presets: named settings of model, sampler and training."""

import pytest

from ssept_ext import SASREC, SSEPT
from ssept_ext.training.presets import DEFAULT_PRESETS, PRESETS, preset_options
from ssept_ext.training.recipe import Recipe

SSEPTS = [
    *("sse-pt", "sse-pt++", "sse-pt-sampled-softmax", "sse-pt++-sampled-softmax"),
    "sse-pt++-gated",
]
SASRECS = ["sasrec", "sasrec-sampled-softmax"]
OF_CLASS = [*((SSEPT, name) for name in SSEPTS), *((SASREC, name) for name in SASRECS)]


def test_these_are_all_presets():
    assert sorted(PRESETS) == sorted(SSEPTS + SASRECS)


@pytest.mark.parametrize(("kind", "name"), OF_CLASS, ids=str)
def test_every_preset_makes_a_model_of_its_class(kind, name):
    recipe = Recipe.of(kind, name, {}, num_users=10**6)

    model = recipe.make_model(item_num=3, user_num=2)

    assert type(model) is kind
    config = {**vars(model.config), **recipe.options()}
    assert {option: config[option] for option in PRESETS[name]} == PRESETS[name]


@pytest.mark.parametrize("kind", [SSEPT, SASREC])
def test_without_a_name_a_class_has_its_preset_with_sampled_softmax(kind):
    assert preset_options(kind.__name__) == PRESETS[DEFAULT_PRESETS[kind.__name__]]
    assert preset_options(kind.__name__)["loss"] == "sampled_softmax"


@pytest.mark.parametrize(
    ("kind", "names", "wrong"),
    [
        (SSEPT, SSEPTS, "gru4rec"),
        (SSEPT, SSEPTS, "sasrec"),
        (SASREC, SASRECS, "sse-pt"),
        (SASREC, SASRECS, ""),
    ],
)
def test_an_unknown_preset_or_one_of_the_other_class_is_refused_with_those_there_are(
    kind, names, wrong
):
    with pytest.raises(ValueError, match="^preset of") as refused:
        Recipe.of(kind, wrong, {}, num_users=100)

    listed, got = (
        str(refused.value)
        .removeprefix(f"preset of {kind.__name__} must be one of ")
        .split(", got ")
    )
    assert sorted(listed.split(", ")) == sorted(names)
    assert got == f'"{wrong}"'


def test_a_preset_looked_up_is_the_callers_to_change():
    preset_options("SSEPT", "sse-pt")["num_epochs"] = 1

    assert PRESETS["sse-pt"]["num_epochs"] == 600
