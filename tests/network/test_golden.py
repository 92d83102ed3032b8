"""SASREC and SSEPT compute recommenders' numbers, from recommenders' parameters."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tolerances import relative_error

from ssept_ext import SASREC, SSEPT

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))


BACKENDS = ["reference", "auto"]


LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


class Golden:
    """A model of recommenders: constructor arguments, parameters, inputs and, in float64, what it computed."""

    def __init__(self, path):
        self.arrays = {k: torch.as_tensor(v) for k, v in np.load(path).items() if k != "config"}
        self.config = json.loads(str(np.load(path)["config"]))
        self.config["class"] = {"SASREC": SASREC, "SSEPT": SSEPT}[self.config["class"]]

    def under(self, prefix):
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def model(self, dtype=torch.float64, backend="auto"):
        arguments = {k: v for k, v in self.config.items() if k != "class"}
        model = self.config["class"](**arguments, backend=backend).to(dtype)
        model.load_state_dict(self.under("param/"))
        return model


every_golden = pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)


every_backend = pytest.mark.parametrize("backend", BACKENDS)


every_dtype = pytest.mark.parametrize("dtype", LIMITS, ids=str)


@every_dtype
@every_backend
@every_golden
def test_logits_and_loss_are_those_of_recommenders(path, backend, dtype):
    golden = Golden(path)
    model = golden.model(dtype, backend)
    positive, negative, is_target = model(golden.under("in/"))
    loss = model.loss_function(positive, negative, is_target)
    out = golden.under("out/")
    assert positive.shape == negative.shape == (len(is_target), 1)
    assert torch.equal(is_target, out["istarget"].to(dtype))
    assert relative_error(positive[:, 0], out["pos_logits"]) < LIMITS[dtype]
    assert relative_error(negative[:, 0], out["neg_logits"]) < LIMITS[dtype]
    assert relative_error(loss, out["loss"]) < LIMITS[dtype]


@every_dtype
@every_backend
@every_golden
def test_every_gradient_is_that_of_recommenders(path, backend, dtype):
    golden = Golden(path)
    model = golden.model(dtype, backend)
    model.loss_function(*model(golden.under("in/"))).backward()
    expected = golden.under("grad/")
    assert {name for name, _ in model.named_parameters()} == set(expected)
    largest = max(x.norm().item() for x in expected.values())
    for name, parameter in model.named_parameters():
        exact = expected[name].reshape(parameter.shape)
        if exact.norm() > 1e-10 * largest:
            assert relative_error(parameter.grad, exact) < LIMITS[dtype], name
        else:  # keys' biases: softmax does not see them, and only rounding is left
            assert parameter.grad.double().norm() < LIMITS[dtype] * largest, name


@every_dtype
@every_backend
@every_golden
def test_predict_is_that_of_recommenders(path, backend, dtype):
    golden = Golden(path)
    inputs = golden.under("in/")
    inputs["user"] = inputs.pop("users")
    scores = golden.model(dtype, backend).predict({k: v.numpy() for k, v in inputs.items()})
    assert relative_error(scores, golden.under("out/")["predict"]) < LIMITS[dtype]


@every_golden
def test_state_dicts_of_recommenders_load_with_their_unused_layer_norms(path):
    golden = Golden(path)
    model = golden.model()
    state = golden.under("param/")
    width = model.config.hidden_size
    for block in range(model.config.num_blocks):
        for norm in ("layernorm1", "layernorm2"):
            for name in ("gamma", "beta"):
                key = f"encoder.enc_layers.{block}.{norm}.{name}"
                state[key] = torch.zeros(model.seq_max_len, width)
    model.load_state_dict(state)
    assert (
        state["encoder.enc_layers.0.ffn.conv_layer1.weight"].dim() == 3
    )  # the caller's is untouched
