"""A file of a checkpoint that is missing, damaged or of another model is named."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    as_format_1,
    edit_config,
    knowing,
    make_ssept,
    named,
    write_tensors,
)

from ssept_ext import SASREC
from ssept_ext.checkpoint.model import CONFIG_FILE, FORMAT, save_checkpoint


@pytest.mark.parametrize("counts", [torch.zeros(20), -torch.ones(21), torch.zeros(21, 1)])
def test_counts_of_other_items_are_named(folder, counts):
    save_checkpoint(knowing(make_ssept()), folder, histories=False)
    write_tensors(folder, "counts", {"counts": counts.long()})

    with pytest.raises(
        ValueError, match=r"counts-.* does not belong to .*ids-.* counts of 20 items"
    ):
        SASREC.from_pretrained(folder)


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


@pytest.mark.parametrize(
    "content", ["[" * 10**5, '{"a":' * 10**5, '{"format": ' + "9" * 5000 + "}"]
)
def test_a_config_that_is_nested_too_deeply_or_holds_too_long_a_number_is_named(folder, content):
    (folder / CONFIG_FILE).write_text(content)

    with pytest.raises(ValueError, match=rf"{CONFIG_FILE} is damaged"):
        SASREC.from_pretrained(folder)


def test_an_edited_config_is_named(folder):
    path = folder / CONFIG_FILE
    path.write_text(path.read_text().replace('"l2_reg": 0.5', '"l2_reg": 0.6'))

    with pytest.raises(ValueError, match=rf"{CONFIG_FILE} is damaged, or was edited: .* digest"):
        SASREC.from_pretrained(folder)


def test_a_config_of_before_there_were_digests_is_read(folder):
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text())
    del config["digest"]
    path.write_text(json.dumps(config))

    assert SASREC.from_pretrained(folder).config.l2_reg == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_blocks", 10**6), ("num_blocks", 1000), ("item_num", 2 * 10**8), ("user_num", 10**30)],
)
def test_a_config_of_a_model_beyond_the_memory_is_refused_by_the_files_own_shapes(
    folder, name, value
):
    arguments = json.loads((folder / CONFIG_FILE).read_text())["arguments"]
    edit_config(folder, arguments=arguments | {name: value})

    with pytest.raises(
        ValueError,
        match=rf"does not belong to .*: {name} is .* and {value} in|do not fit: {name} must be",
    ):
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
        {"times": torch.tensor([4, 1])},
        {"offsets": torch.tensor([0, 4])},
        {"offsets": torch.tensor([0, 3, 2, 4, 4, 4, 4, 4])},
    ],
    ids=["unknown item", "too few", "too few times", "other users", "falling"],
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
