"""Checkpoints: a model comes back as it was."""

from dataclasses import asdict
from typing import get_args
from uuid import UUID

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import as_format_1, knowing, make_sasrec, make_ssept, named, names
from support.factories import tiny_model

from ssept_ext import SASREC, SSEPT
from ssept_ext.checkpoint.model import CONFIG_FILE, save_checkpoint
from ssept_ext.network.config import Architecture


@pytest.mark.parametrize("make", [make_ssept, make_sasrec])
@pytest.mark.parametrize("architecture", get_args(Architecture))
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
    for name in (".ids.json.x1.ssept_ext", ".config.json.x2.ssept_ext"):  # of killed processes
        (folder / name).mkdir()
        (folder / name / "part").touch()
    others = ("run.json", ".hidden", "model-mine.safetensors", "model.safetensors")
    for name in (*others, ".model.safetensors.backup"):
        (folder / name).touch()

    save_checkpoint(make_sasrec(), folder)

    assert type(SASREC.from_pretrained(folder)) is SASREC
    kept = [CONFIG_FILE, named(folder).name, *others, ".model.safetensors.backup"]
    assert names(folder) == sorted(kept)


def test_saving_over_format_1_removes_its_file(folder):
    as_format_1(folder)

    save_checkpoint(make_sasrec(), folder)

    assert names(folder) == [CONFIG_FILE, named(folder).name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG_FILE, b'{"model_type": "bert", "architectures": ["BertModel"]}'),
        (CONFIG_FILE, b"half a"),
        ("model.safetensors", b"of another program"),
    ],
)
def test_what_another_program_wrote_is_replaced_only_when_told_to(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(FileExistsError, match=rf"{name} is not of a checkpoint .*overwrite=True"):
        make_sasrec().save_pretrained(tmp_path)
    assert (names(tmp_path), (tmp_path / name).read_bytes()) == ([name], content)

    make_sasrec().save_pretrained(tmp_path, overwrite=True)
    assert type(SASREC.from_pretrained(tmp_path)) is SASREC
    assert name == CONFIG_FILE or (tmp_path / name).read_bytes() == content


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
    for expected, got in zip(known.histories[:3], loaded.histories[:3], strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.int64


@pytest.mark.parametrize("times", [[10, 20, 30, 2**40], None])
def test_times_of_histories_are_saved_where_they_are_known(tmp_path, times):
    model = knowing(make_ssept(), times=times)

    model.save_pretrained(tmp_path)

    saved = load_file(named(tmp_path, "histories"))
    assert set(saved) == {"offsets", "items", *([] if times is None else ["times"])}
    assert times is None or saved["times"].tolist() == times


def test_saved_times_come_back_with_the_events_of_each_user(tmp_path):
    knowing(make_ssept(time_bias=True), times=[10, 20, 30, 2**40]).save_pretrained(tmp_path)
    untimed = knowing(make_ssept()).known

    known = SSEPT.from_pretrained(tmp_path).known

    assert [array.tolist() for array in known.events(1)] == [[4, 1, 20], [10, 20, 30]]
    assert [array.tolist() for array in known.events(3)] == [[4], [2**40]]
    assert [array.tolist() for array in known.events(0)] == [[], []]
    assert known.of(1).tolist() == [4, 1, 20]
    assert untimed.events(1)[1] is untimed.events(0)[1] is None


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


def test_a_loaded_model_does_not_follow_later_changes_of_the_file(folder):
    model = SASREC.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = named(folder)

    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
