"""Checkpoints: a model comes back as it was."""

from dataclasses import asdict
from uuid import UUID

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import as_format_1, knowing, make_sasrec, make_ssept, named, names
from support.factories import tiny_model

from ssept_ext import SASREC, SSEPT
from ssept_ext.checkpoint.model import CONFIG_FILE, save_checkpoint


@pytest.mark.parametrize("make", [make_ssept, make_sasrec])
@pytest.mark.parametrize("architecture", ["recommenders", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_model_comes_back_as_it_was(tmp_path, make, architecture, dtype):
    model = make(architecture=architecture).to(dtype)

    save_checkpoint(model, tmp_path)
    loaded = SASREC.from_pretrained(tmp_path)

    assert type(loaded) is type(model)
    assert asdict(loaded.config) == asdict(model.config)
    expected, got = model.state_dict(), loaded.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_loaded_model_trains(folder):
    model = SASREC.from_pretrained(folder)

    inputs = {"users": [[3]], "input_seq": [[1, 2]], "positive": [[2, 3]], "negative": [[5, 6]]}
    loss = model.loss_function(*model({name: torch.tensor(ids) for name, ids in inputs.items()}))
    loss.backward()
    torch.optim.Adam(model.parameters()).step()

    assert model.item_embedding_layer.weight.grad.abs().sum() > 0


def test_the_backend_is_chosen_when_loading(folder):
    assert SASREC.from_pretrained(folder, backend="reference").backend == "reference"


def test_saving_makes_the_folder_and_leaves_two_files(tmp_path):
    folder = tmp_path / "a" / "b"
    save_checkpoint(make_sasrec(), folder)

    assert names(folder) == [CONFIG_FILE, named(folder).name]


def test_saving_again_replaces_the_checkpoint_and_nothing_else(folder):
    save_checkpoint(knowing(make_ssept()), folder)
    for name in (".model.safetensors.123", ".ids.json.9", ".config.json.4"):  # of killed processes
        (folder / name).mkdir()
        (folder / name / "part").touch()
    (folder / "model.safetensors").touch()  # of format 1
    for name in ("run.json", ".hidden", "model-mine.safetensors"):
        (folder / name).touch()

    save_checkpoint(make_sasrec(), folder)

    assert type(SASREC.from_pretrained(folder)) is SASREC
    kept = [CONFIG_FILE, named(folder).name, "run.json", ".hidden", "model-mine.safetensors"]
    assert names(folder) == sorted(kept)


def test_equal_models_make_equal_folders(tmp_path):
    model = knowing(make_ssept())
    for name in ("a", "b"):
        save_checkpoint(model, tmp_path / name)

    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert (tmp_path / "a" / CONFIG_FILE).read_bytes() == (
        tmp_path / "b" / CONFIG_FILE
    ).read_bytes()


@pytest.mark.parametrize(
    "users",
    ["abcdefg", [*range(-3, 4)], [UUID(int=i) for i in range(7)]],
    ids=["str", "int", "uuid"],
)
@pytest.mark.parametrize("make", [make_ssept, make_sasrec])
def test_raw_ids_and_histories_come_back(tmp_path, make, users):
    known = knowing(make(), users).known

    knowing(make(), users).save_pretrained(tmp_path)
    loaded = SASREC.from_pretrained(tmp_path).known

    assert (loaded.user_ids, loaded.item_ids) == (known.user_ids, known.item_ids)
    for expected, got in zip(known.histories, loaded.histories, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.int64


def test_without_histories_nobody_s_events_are_in_the_folder_any_more(tmp_path):
    model = knowing(make_ssept())
    model.save_pretrained(tmp_path)

    model.save_pretrained(tmp_path, histories=False)
    SSEPT.from_pretrained(tmp_path).save_pretrained(tmp_path)  # which has none to save

    assert {name.partition("-")[0] for name in names(tmp_path)} == {
        CONFIG_FILE,
        "model",
        "ids",
        "counts",
    }
    assert list(load_file(named(tmp_path, "counts"))) == ["counts"]
    loaded = SSEPT.from_pretrained(tmp_path).known
    assert (loaded.user_ids, loaded.item_ids) == (model.known.user_ids, model.known.item_ids)
    assert loaded.histories is None
    np.testing.assert_array_equal(loaded.popularity, model.known.popularity)


def test_raw_ids_that_do_not_fit_the_model_are_not_saved(tmp_path):
    model = knowing(make_ssept(), users="abcdef")

    with pytest.raises(ValueError, match="has 7 users and 20 items, but knows raw ids of 6 users"):
        save_checkpoint(model, tmp_path)

    assert not names(tmp_path)


def test_a_folder_of_another_class_is_refused(tmp_path):
    make_sasrec().save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="holds a SASREC, not a SSEPT"):
        SSEPT.from_pretrained(tmp_path)


def test_a_model_is_loaded_to_the_device_asked_for(folder):
    assert SSEPT.from_pretrained(folder, device="meta").device.type == "meta"


@pytest.mark.cuda
def test_a_model_goes_to_the_gpu_and_back(folder, tmp_path):
    expected = SASREC.from_pretrained(folder).state_dict()

    SSEPT.from_pretrained(folder, device="cuda").save_pretrained(tmp_path / "copy")

    got = SASREC.from_pretrained(tmp_path / "copy").state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_format_1_is_still_read(folder):
    expected = SASREC.from_pretrained(folder).state_dict()
    as_format_1(folder)

    got = SASREC.from_pretrained(folder).state_dict()

    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_class_that_could_not_be_loaded_is_not_saved(tmp_path):
    class Mine(SASREC):
        pass

    with pytest.raises(TypeError, match="model must be one of SASREC, SSEPT, got Mine"):
        save_checkpoint(tiny_model(Mine), tmp_path)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stem", ["config", "model", "ids", "histories"])
def test_a_missing_file_is_named(folder, stem):
    save_checkpoint(knowing(make_ssept()), folder)
    path = folder / CONFIG_FILE if stem == "config" else named(folder, stem)
    path.unlink()

    with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing: .* is not a checkpoint"):
        SASREC.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b'{"format": 1,', b"\xff\xfe", b"[1, 2]", b'{"a": 1}'])
def test_a_config_that_is_none_is_named(folder, content):
    (folder / CONFIG_FILE).write_bytes(content)

    with pytest.raises(ValueError, match=rf"{CONFIG_FILE} (is damaged|was not written by)"):
        SASREC.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, this version reads 1 to {FORMAT}"),
        ({"format": "new"}, "has format new"),
        ({"files": {}}, "is damaged: its files are {}"),
        ({"files": None}, "is damaged: its files are None"),
        ({"files": {"model": "../model-0123456789abcdef.safetensors"}}, "is damaged: its files"),
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
        SASREC.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
@pytest.mark.parametrize("stem", ["model", "ids", "histories"])
def test_a_truncated_file_is_named(folder, stem, keep):
    save_checkpoint(knowing(make_ssept()), folder)
    path = named(folder, stem)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        SASREC.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_of_format_1_are_named(folder, keep):
    as_format_1(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        SASREC.from_pretrained(folder)


def test_one_changed_bit_is_noticed(folder):
    content = bytearray(named(folder).read_bytes())
    content[-1] ^= 1
    named(folder).write_bytes(content)

    with pytest.raises(
        ValueError, match=rf"{named(folder).name} is damaged: its content does not match"
    ):
        SASREC.from_pretrained(folder)


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
    tensors = load_file(named(folder))
    change(tensors)
    write_tensors(folder, "model", tensors)

    with pytest.raises(ValueError, match=rf"{named(folder).name} does not belong to .*config.json"):
        SASREC.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"items": torch.tensor([4, 1, 21, 4])},
        {"items": torch.tensor([4, 1])},
        {"offsets": torch.tensor([0, 4])},
        {"offsets": torch.tensor([0, 3, 2, 4, 4, 4, 4, 4])},
    ],
    ids=["unknown item", "too few", "other users", "falling"],
)
def test_histories_of_other_ids_are_named(folder, change):
    save_checkpoint(knowing(make_ssept()), folder)
    tensors = load_file(named(folder, "histories"))
    write_tensors(folder, "histories", tensors | change)

    with pytest.raises(ValueError, match=r"histories-.* does not belong to .*ids-"):
        SASREC.from_pretrained(folder)


def test_raw_ids_of_another_model_are_named(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    save_checkpoint(knowing(make_ssept()), folder)
    save_checkpoint(knowing(make_ssept(user_num=6), users="abcdef"), other)
    files = json.loads((folder / CONFIG_FILE).read_text())["files"]
    for stem in ("ids", "histories"):
        files[stem] = named(other, stem).rename(folder / named(other, stem).name).name
    edit_config(folder, files=files)

    with pytest.raises(ValueError, match="ids-.* does not belong to .*: the model has 7 users"):
        SASREC.from_pretrained(folder)


def test_a_loaded_model_does_not_follow_later_changes_of_the_file(folder):
    model = SASREC.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = named(folder)

    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


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
    model = make(num_blocks=2, attention_num_heads=2, dropout_rate=0.5, l2_reg=0.0)
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
