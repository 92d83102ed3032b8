"""Checkpoints: a model comes back as it was, or the file that is wrong is named."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssept_ext import SASREC, SSEPT
from ssept_ext.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint, save_checkpoint

SIZES = {"item_num": 20, "seq_max_len": 5, "num_blocks": 1, "dropout_rate": 0.25, "l2_reg": 0.5}


def make_ssept(**arguments):
    sizes = SIZES | {"embedding_dim": 6, "user_embedding_dim": 2, "conv_dims": [4, 8]}
    return SSEPT(user_num=7, **(sizes | arguments))


def make_sasrec(**arguments):
    return SASREC(**(SIZES | {"embedding_dim": 6, "conv_dims": [6, 6]} | arguments))


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(make_ssept(), tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("make", [make_ssept, make_sasrec])
@pytest.mark.parametrize("architecture", ["recommenders", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_model_comes_back_as_it_was(tmp_path, make, architecture, dtype):
    model = make(architecture=architecture).to(dtype)

    save_checkpoint(model, tmp_path)
    loaded = load_checkpoint(tmp_path)

    assert type(loaded) is type(model)
    assert asdict(loaded.config) == asdict(model.config)
    expected, got = model.state_dict(), loaded.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_loaded_model_trains(folder):
    model = load_checkpoint(folder)

    inputs = {"users": [[3]], "input_seq": [[1, 2]], "positive": [[2, 3]], "negative": [[5, 6]]}
    loss = model.loss_function(*model({name: torch.tensor(ids) for name, ids in inputs.items()}))
    loss.backward()
    torch.optim.Adam(model.parameters()).step()

    assert model.item_embedding_layer.weight.grad.abs().sum() > 0


def test_the_backend_is_chosen_when_loading(folder):
    assert load_checkpoint(folder, backend="reference").backend == "reference"


def test_saving_makes_the_folder_and_leaves_two_files(tmp_path):
    save_checkpoint(make_sasrec(), tmp_path / "a" / "b")

    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_again_replaces_the_checkpoint(folder):
    model = make_sasrec()

    save_checkpoint(model, folder)

    assert isinstance(load_checkpoint(folder), SASREC)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_failed_save_leaves_the_old_checkpoint_whole(folder, monkeypatch):
    expected = load_checkpoint(folder).state_dict()

    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ssept_ext.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(make_ssept(), folder)

    got = load_checkpoint(folder).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_class_that_could_not_be_loaded_is_not_saved(tmp_path):
    class Mine(SASREC):
        pass

    with pytest.raises(TypeError, match="model must be one of SASREC, SSEPT, got Mine"):
        save_checkpoint(Mine(**SIZES, embedding_dim=6, conv_dims=[6, 6]), tmp_path)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()

    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: .* is no checkpoint"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b'{"format": 1,', b"\xff\xfe", b"[1, 2]", b'{"a": 1}'])
def test_a_config_that_is_none_is_named(folder, content):
    (folder / CONFIG_FILE).write_bytes(content)

    with pytest.raises(ValueError, match=rf"{CONFIG_FILE} (is damaged|was not written by)"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"class": "GRU4Rec"}, "names the class GRU4Rec, this version knows SASREC, SSEPT"),
        ({"class": ["SSEPT"]}, "names the class"),
        ({"arguments": {"item_num": 20}}, "arguments that do not fit: SSEPT needs .* user_num"),
        ({"arguments": {"colour": 1}}, 'do not fit: SSEPT has no argument "colour"'),
        ({"arguments": [1]}, "arguments that do not fit"),
    ],
)
def test_a_config_of_another_version_or_class_is_named(folder, changes, message):
    edit_config(folder, **changes)

    with pytest.raises(ValueError, match=rf"{CONFIG_FILE} .*{message}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_named(folder, keep):
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ValueError, match=rf"{WEIGHTS_FILE} is damaged"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("item_embedding_layer.weight"),
        lambda tensors: tensors.update(extra=torch.zeros(1)),
        lambda tensors: tensors.update({"item_embedding_layer.weight": torch.zeros(3, 6)}),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_of_another_model_are_named(folder, change):
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)

    with pytest.raises(ValueError, match=rf"{WEIGHTS_FILE} does not belong to .*{CONFIG_FILE}"):
        load_checkpoint(folder)


def test_a_loaded_model_does_not_follow_later_changes_of_the_file(folder):
    model = load_checkpoint(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / WEIGHTS_FILE

    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
