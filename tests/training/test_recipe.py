"""Recipes: a preset and changes of it, as options of model, sampler and training."""

import json
from dataclasses import asdict

import pytest

from ssept_ext import SASREC, SSEPT
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.recipe import Recipe

LONG = {"num_epochs": 100, "batch_size": 10}


def of(kind=SSEPT, preset=None, num_users=10**6, **changes):
    return Recipe.of(kind, preset, changes, num_users)


def test_changes_go_before_the_preset_and_the_rest_of_the_preset_stays():
    recipe = of(preset="sse-pt++", num_negatives=3, loss="bpr", learning_rate=0.5, seq_max_len=7)

    assert recipe.model["seq_max_len"] == 7
    assert recipe.model["architecture"] == "original"
    assert asdict(recipe.sampler) == {
        "num_negatives": 3,
        "negatives_per": "event",
        "popularity_exponent": 0.0,
        "window_sampling_prob": 0.3,
    }
    assert recipe.loop == LoopOptions(num_epochs=600, learning_rate=0.5)
    assert recipe.training == TrainingOptions(
        loss="bpr", adam_betas=(0.9, 0.98), schedule="cosine", warmup_steps=200, validation="full"
    )


@pytest.mark.parametrize(
    ("num_users", "warmup_steps"),
    [(1000, 200), (200, 200), (100, 100), (19, 10), (5, 10)],
)
def test_the_warm_up_of_a_preset_is_at_most_a_tenth_of_the_steps(num_users, warmup_steps):
    assert of(num_users=num_users, **LONG).training.warmup_steps == warmup_steps


def test_a_warm_up_that_is_given_is_left_as_it_is():
    assert of(num_users=5, **LONG, warmup_steps=150).training.warmup_steps == 150


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_embedding_dim": 6, "user_embedding_dim": 4, "max_grad_norm": 1.0},
        {"conv_dims": [7, 150], "precision": "bf16", "num_negatives": 2, "val_epoch": 3},
        {"validation": "sampled", "logq_correction": "negatives"},
    ],
    ids=str,
)
def test_a_recipe_comes_back_from_its_options_also_through_a_file(changes):
    recipe = of(**changes)

    assert Recipe.from_options(SSEPT, recipe.options()) == recipe
    read = Recipe.from_options(SSEPT, json.loads(json.dumps(recipe.options())))
    assert (read.sampler, read.loop, read.training) == (
        recipe.sampler,
        recipe.loop,
        recipe.training,
    )
    assert read.make_model(3, 2).config == recipe.make_model(3, 2).config


def test_options_that_are_not_given_are_those_of_the_constructor_and_of_train_model():
    model = Recipe.from_options(SASREC, {}).make_model(item_num=3, user_num=2)

    assert model.config == SASREC(item_num=3).config
    assert Recipe.from_options(SSEPT, {}).loop == LoopOptions()
    assert Recipe.from_options(SSEPT, {}).training == TrainingOptions()


@pytest.mark.parametrize(
    ("kind", "changes", "hidden_size"),
    [
        (SASREC, {"embedding_dim": 6}, 6),
        (SSEPT, {"embedding_dim": 6, "user_embedding_dim": None}, 12),
        (SSEPT, {"embedding_dim": 6, "user_embedding_dim": 4}, 10),
        (SSEPT, {"embedding_dim": 6, "user_embedding_dim": 4, "item_embedding_dim": 8}, 12),
    ],
)
def test_feed_forward_layers_are_as_wide_as_the_model_if_not_given(kind, changes, hidden_size):
    config = of(kind, **changes).make_model(item_num=3, user_num=2).config

    assert config.conv_dims == (hidden_size, hidden_size)
    assert config.hidden_size == hidden_size


@pytest.mark.parametrize("base", [SSEPT, SASREC])
def test_a_class_that_a_user_derives_has_the_preset_of_its_base(base):
    class Derived(base):
        pass

    recipe = of(Derived)

    assert recipe.kind is Derived
    assert recipe.options() == of(base).options()


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "float32")])
def test_the_older_spelling_of_a_precision_is_taken(bf16, precision):
    assert of(bf16=bf16).training.precision == precision


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (SSEPT, "colour", 'SSEPT has no option "colour"; there are seq_max_len, .*, restore_best'),
        (SASREC, "sse_user_prob", 'SASREC has no option "sse_user_prob"; there are seq_max_len'),
        (SSEPT, "item_num", "item_num comes from the data and cannot be given"),
        (SASREC, "user_num", "user_num comes from the data and cannot be given"),
    ],
)
def test_an_unknown_option_is_named(kind, name, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        of(kind, **{name: 1})


def test_options_that_contradict_each_other_are_refused_before_there_is_a_model():
    with pytest.raises(ValueError, match="patience and restore_best need a val_epoch"):
        of(patience=1)
