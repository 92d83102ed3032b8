"""Options of training: what they do to a small model, and how wrong ones are named."""

import math
from dataclasses import replace

import pytest
import torch
from support.ring import (
    NUM_ITEMS,
    NUM_USERS,
    Stub,
    make_sampler,
    make_ssept,
    train,
)

from ssept_ext.sampling.sampler import WarpSampler
from ssept_ext.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.mark.parametrize("popularity_exponent", [0.0, 0.5])
@pytest.mark.parametrize("correction", ["all", "negatives"])
def test_sampled_softmax_corrects_for_how_the_sampler_draws(
    dataset, popularity_exponent, correction
):
    model = Stub()
    sampler = WarpSampler(
        dataset.user_train,
        NUM_USERS,
        NUM_ITEMS,
        batch_size=4,
        maxlen=3,
        seed=1,
        popularity_exponent=popularity_exponent,
    )

    train(model, dataset, sampler, num_epochs=1, loss="sampled_softmax", logq_correction=correction)

    assert model.loss_options["loss"] == "sampled_softmax"
    assert model.loss_options["logq_correction"] == correction
    log_probs = model.loss_options["negative_log_probs"]
    if popularity_exponent:
        assert torch.equal(log_probs, torch.from_numpy(sampler.negative_log_probs).float())
    elif correction == "negatives":  # which does not cancel
        assert log_probs.exp().tolist() == pytest.approx([1 / NUM_ITEMS] * (NUM_ITEMS + 1))
    else:
        assert log_probs is None


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "gbce", "gbce_t": 0.5},
        {"loss": "bpr"},
        {"loss": "sampled_softmax"},
        {"loss": "softmax"},
        {"bf16": True},
        {"loss": "softmax", "precision": "bf16", "max_grad_norm": 1.0},
    ],
    ids=str,
)
def test_every_loss_and_bfloat16_learn_the_ring_by_keywords_of_train_model(dataset, options):
    model = make_ssept()

    with make_sampler(dataset, batch_size=12) as sampler:
        history = model.train_model(
            dataset, sampler, 60, 12, 0.02, val_epoch=60, verbose=False, **options
        )

    assert history["val_ndcg"][0] > 0.75  # 0.6 before training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bfloat16_reaches_the_hidden_states(dataset):
    model = make_ssept()
    dtypes = {}
    layer = model.encoder.enc_layers[0]
    for name, module in (("mha", layer.mha), ("ffn", layer.ffn)):
        module.register_forward_hook(lambda m, i, out, name=name: dtypes.update({name: out.dtype}))

    train(model, dataset, num_epochs=1, precision="bf16")

    assert dtypes == {"mha": torch.bfloat16, "ffn": torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "float32"),
        ({"bf16": False}, "float32"),
        ({"bf16": True}, "bf16"),
        ({"bf16": True, "precision": "bf16"}, "bf16"),
        ({"bf16": False, "precision": "tf32"}, "tf32"),
    ],
)
def test_bf16_is_an_older_spelling_of_a_precision(given, precision):
    options = TrainingOptions(**given)

    assert options == TrainingOptions(precision=precision)
    assert replace(options, precision="tf32").precision == "tf32"


def test_an_unknown_keyword_is_an_error(dataset):
    with pytest.raises(TypeError, match="colour"):
        make_ssept().train_model(dataset, make_sampler(dataset), colour="red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, r"loss must be one of \(.*\), got 'hinge'"),
        ({"schedule": "step"}, r"schedule must be one of \(.*\), got 'step'"),
        ({"gbce_t": 1.5}, r"gbce_t must be in \[0, 1\], got 1.5"),
        ({"adam_betas": (0.9, 1.0)}, r"adam_betas must be 2 numbers in \[0, 1\), got"),
        ({"adam_betas": (0.9,)}, "adam_betas must be 2 numbers"),
        ({"precision": "fp8"}, r"precision must be one of \(.*\), got 'fp8'"),
        ({"precision": "tf32", "bf16": True}, 'bf16=True contradicts precision="tf32"'),
        ({"precision": "float32", "bf16": True}, 'bf16=True contradicts precision="float32"'),
        ({"precision": "bf16", "bf16": False}, 'bf16=False contradicts precision="bf16"'),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0, got -1"),
        ({"patience": 1.5}, "patience must be an integer of at least 0, got 1.5"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and positive, got 0.0"),
    ],
)
def test_wrong_training_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


@pytest.mark.parametrize("options", [{"patience": 1}, {"restore_best": True}])
def test_the_best_model_needs_validations(dataset, options):
    with pytest.raises(ValueError, match="patience and restore_best need a val_epoch"):
        train(Stub(), dataset, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be an integer of at least 1, got 0"),
        ({"num_epochs": 1.5}, "num_epochs must be an integer of at least 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"val_epoch": -1}, "val_epoch must be an integer of at least 0, got -1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be an integer of at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and positive, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite and positive, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be finite and positive, got inf"),
    ],
)
def test_bad_options_are_errors_before_training(dataset, options, message):
    model = Stub()

    with pytest.raises(ValueError, match=message):
        train(model, dataset, **options)

    assert model.batches == []
