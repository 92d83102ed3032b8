"""State dicts of recommenders are read, and what else a pickle holds is refused."""

import os
from dataclasses import asdict

import pytest
import torch
from support.checkpoints import make_sasrec, make_ssept, names

from ssept_ext import SSEPT


def recommenders_state(model):
    """What recommenders would have: linear layers as convolutions, and norms that are never used."""
    state = dict(model.state_dict())
    for name in [name for name in state if "conv_layer" in name and name.endswith("weight")]:
        state[name] = state[name].unsqueeze(2)
    for norm in ("layernorm1", "layernorm2"):
        state[f"encoder.enc_layers.0.{norm}.weight"] = torch.ones(8)
    return state


@pytest.mark.parametrize("make", [make_ssept, make_sasrec])
def test_a_state_dict_of_recommenders_is_read(tmp_path, make):
    defaults = {"dropout_rate": 0.5, "l2_reg": 0.0, "num_neg_test": 100}  # which no tensor shows
    model = make(num_blocks=2, attention_num_heads=2, **defaults)
    torch.save(recommenders_state(model), tmp_path / "model.pt")

    loaded = type(model).from_recommenders(tmp_path / "model.pt", attention_num_heads=2)

    assert asdict(loaded.config) | {"embedding_dim": 6} == asdict(model.config)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_wrong_argument_beside_a_state_dict_is_named(tmp_path):
    torch.save(make_ssept().state_dict(), tmp_path / "model.pt")

    with pytest.raises(TypeError, match='SSEPT has no argument "colour"'):
        SSEPT.from_recommenders(tmp_path / "model.pt", attention_num_heads=1, colour=1)
    with pytest.raises(FileNotFoundError, match=r"other.pt is missing"):
        SSEPT.from_recommenders(tmp_path / "other.pt", attention_num_heads=1)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("run-by-pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "damaged or not a state dict of tensors"),
        ({"item_embedding_layer.weight": Evil()}, "damaged or not a state dict of tensors"),
        ({"weight": torch.zeros(1)}, "not a state dict of recommenders' SSEPT"),
        ([1, 2], "not a state dict of recommenders' SSEPT"),
        (
            make_sasrec().state_dict(),
            "not a state dict of recommenders' SSEPT: .*user_embedding_layer",
        ),
    ],
    ids=["code", "code inside", "other tensors", "a list", "SASREC"],
)
def test_a_foreign_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "model.pt")

    with pytest.raises(ValueError, match=rf"model.pt (is|) ?{message}"):
        SSEPT.from_recommenders("model.pt", attention_num_heads=1)

    assert names(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_truncated_state_dict_is_named(tmp_path, keep):
    path = tmp_path / "model.pt"
    torch.save(make_ssept().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ValueError, match=r"model.pt is damaged"):
        SSEPT.from_recommenders(path, attention_num_heads=1)


def test_a_state_dict_for_recommenders_has_the_names_and_shapes_of_its_classes():
    model = make_ssept(num_blocks=2)
    width, (inner, _) = model.config.hidden_size, model.config.conv_dims
    linear = {"weight": (width, width), "bias": (width,)}
    norm = {"gamma": (model.seq_max_len, width), "beta": (model.seq_max_len, width)}
    unused = {"weight": (width,), "bias": (width,)}
    block = {
        "mha.Q": linear,
        "mha.K": linear,
        "mha.V": linear,
        "ffn.conv_layer1": {"weight": (inner, width, 1), "bias": (inner,)},
        "ffn.conv_layer2": {"weight": (width, inner, 1), "bias": (width,)},
        "layernorm1": unused,
        "layernorm2": unused,
        "layer_normalization": norm,
    }
    expected = {f"layer_normalization.{name}": shape for name, shape in norm.items()} | {
        f"{table}_embedding_layer.weight": tuple(
            getattr(model, f"{table}_embedding_layer").weight.shape
        )
        for table in ("item", "user", "positional")
    }
    for i in range(2):
        for layer, parameters in block.items():
            for name, shape in parameters.items():
                expected[f"encoder.enc_layers.{i}.{layer}.{name}"] = shape

    state = model.state_dict_for_recommenders()

    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize("make", [make_ssept, make_sasrec])
def test_a_state_dict_goes_to_recommenders_and_back(make):
    model, other = make(num_blocks=2), make(num_blocks=2)

    other.load_state_dict(model.state_dict_for_recommenders())

    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_an_architecture_that_recommenders_lacks_is_not_written():
    model = make_sasrec(architecture="original")

    with pytest.raises(ValueError, match='architecture must be "recommenders" .* got "original"'):
        model.state_dict_for_recommenders()
