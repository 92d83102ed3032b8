"""Prepared files that are mapped into memory: what comes back, and what damaged or hostile ones give."""

import pickle
import struct
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.torch import save_file
from support.damage import REFUSED, damages, read_or_refused
from support.interactions import histories, of_rows

from ssept_ext import Interactions, SASRecDataSet
from ssept_ext.cli.runs import load_data
from ssept_ext.data import id_map, texts
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.id_map import save_id_maps
from ssept_ext.data.prepared import load_prepared

UUIDS = [
    (UUID(int=user), UUID(int=2**127 + item), time)
    for user, item, time in [(7, 5, 2), (1, 5, 1), (7, 9, 3)]
]


def saved(path, events):
    events.save(path)
    return path


@pytest.fixture
def path(tmp_path):
    """A prepared file of strings and integers."""
    events = of_rows(("bob", 70, 3), ("é", 50, 9), ("bob", 60, 1))
    return saved(tmp_path / "events.safetensors", events)


def rewrite(path, header=None, **tensors):
    """Change some tensors, or leave out those that are None."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        before = file.metadata()
    changed = {name.replace("__", "."): value for name, value in tensors.items()}
    kept = {name: x for name, x in {**found, **changed}.items() if x is not None}
    save_file(kept, path, {**before, **(header or {})})


@pytest.mark.parametrize(
    "rows",
    [[(5, 70, 3), (-2, 50, 9), (5, 60, 1)], [("bob", "x", 3), ("é", "ab\0", 9)], UUIDS],
    ids=["int64", "str", "uuid"],
)
def test_histories_and_raw_ids_come_back(tmp_path, rows):
    events = of_rows(*rows)

    loaded = Interactions.load(saved(tmp_path / "events.safetensors", events), verify=True)

    assert histories(loaded) == histories(events)
    assert (loaded.user_ids, loaded.item_ids) == (events.user_ids, events.item_ids)
    assert loaded.user_ids.raw.tolist() == events.user_ids.raw.tolist()
    assert loaded.times.tolist() == events.times.tolist()


def test_times_come_back_as_the_integers_that_models_read(tmp_path):
    fractions = of_rows((1, 2, 3.75), (1, 3, -0.5))

    loaded = Interactions.load(saved(tmp_path / "events.safetensors", fractions), verify=True)

    assert loaded.times.tolist() == [-1, 3]
    assert loaded.to_dataset().histories("all").times is loaded.times


def test_data_without_times_make_a_file_without_times(tmp_path):
    path = saved(tmp_path / "events.safetensors", of_rows((1, 2), (1, 3), timestamp=None))

    assert Interactions.load(path).times is None
    assert SASRecDataSet(path).with_time is False
    with safe_open(path, "pt") as file:
        assert "times" not in file.keys()  # noqa: SIM118


def test_a_changed_time_is_found_by_the_digest(path):
    rewrite(path, times=torch.tensor([1, 4, 9]))

    with pytest.raises(ValueError, match="its content does not match its digest"):
        Interactions.load(path, verify=True)


def test_a_data_set_of_it_equals_that_of_text_and_its_ids(tmp_path):
    events = of_rows(*((f"u{u}", f"i{(u * i) % 5}", i) for u in range(4) for i in range(u + 2)))
    mapped = saved(tmp_path / "events.safetensors", events)
    text = tmp_path / "events.txt"
    text.write_text("".join(f"{u} {i}\n" for u, i in zip(events.users, events.items, strict=True)))
    save_id_maps(f"{text}.ids.json", events.user_ids, events.item_ids)

    datasets = [load_data({"filename": str(path), "col_sep": None}) for path in (mapped, text)]

    assert Fingerprint.of(datasets[0]) == Fingerprint.of(datasets[1])
    assert datasets[0].user_train == datasets[1].user_train
    assert [dataset.with_time for dataset in datasets] == [True, False]
    assert datasets[0].histories("all").times.tolist() == events.times.tolist()


def test_it_is_mapped_rather_than_read(tmp_path):
    events = of_rows(*((user, item, 0) for user in range(20) for item in range(100)))

    loaded = load_prepared(saved(tmp_path / "events.safetensors", events))

    maps = [
        line.split()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "events.safetensors" in line
    ]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in maps]
    for array in (loaded.histories.items, loaded.histories.times):
        assert any(low <= array.ctypes.data < high for low, high in ranges)


def test_what_is_mapped_stays_when_the_file_is_replaced(path):
    loaded = Interactions.load(path)

    of_rows((1, 2, 3)).save(path)

    assert histories(loaded) == {"bob": [60, 70], "é": [50]}


def test_an_interrupted_write_leaves_the_old_file(path, monkeypatch):
    def fail(tensors, part, header):
        part.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("ssept_ext.utils.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        of_rows((1, 2, 3)).save(path)

    assert histories(Interactions.load(path, verify=True)) == {"bob": [60, 70], "é": [50]}
    assert [found.name for found in path.parent.iterdir()] == ["events.safetensors"]


def test_another_name_is_refused_as_readers_would_take_it_for_text(tmp_path):
    with pytest.raises(ValueError, match="path must end in .safetensors"):
        of_rows((1, 2, 3)).save(tmp_path / "events.bin")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"items": torch.tensor([2, 1, 4])}, "largest item must be that of the last of 3 item ids"),
        ({"items": torch.tensor([2, 0, 3])}, "item id must be an integer from 1"),
        ({"items": torch.tensor([2, -(2**63), 3])}, "item id must be an integer from 1"),
        (
            {"items": torch.tensor([2, 1, 3], dtype=torch.int32)},
            "items must be of one dimension and torch.int64",
        ),
        ({"items": torch.tensor([[2, 1, 3]])}, "must be of one dimension and torch.int64, got 2"),
        ({"items": torch.zeros(0, dtype=torch.int64)}, "must be 3 integers that rise"),
        (
            {"offsets": torch.tensor([0, 4, 3])},
            "must be 3 integers that rise from 0 to the 3 events",
        ),
        (
            {"offsets": torch.tensor([1, 2, 3])},
            "must be 3 integers that rise from 0 to the 3 events",
        ),
        ({"offsets": torch.tensor([0, 2, 2**62])}, "must be 3 integers that rise"),
        ({"offsets": torch.tensor([0, 3])}, "must be 3 integers that rise"),
        ({"offsets": None}, "'offsets'"),
        ({"times": torch.tensor([1, 2])}, "times must be 3 integers, one for each event"),
        ({"times": torch.tensor([1.0, 2, 3])}, "times must be of one dimension and torch.int64"),
        ({"times": torch.tensor([[1, 2, 3]])}, "times must be of one dimension and torch.int64"),
        (
            {"user_ids__bounds": torch.tensor([0, 9, 5])},
            "offsets of texts must rise from 0 to their 5",
        ),
        ({"user_ids__bounds": torch.tensor([0, 3, 2**40])}, "offsets of texts must rise"),
        ({"user_ids__bounds": torch.zeros(0, dtype=torch.int64)}, "offsets of texts must rise"),
        ({"user_ids__bounds": torch.tensor([0, 4, 5])}, "starts in the middle of a character"),
        ({"user_ids": torch.tensor([98, 111, 98, 255, 65], dtype=torch.uint8)}, "can't decode"),
        ({"header": {"user_ids": "uuid"}}, "user_ids must have 16 bytes each"),
        ({"header": {"user_ids": "bytes"}}, "user_ids are of type 'bytes'"),
        ({"header": {"user_ids": "int64"}}, "user_ids must be of one dimension and torch.int64"),
        ({"header": {"format": "ssept_ext events 2"}}, "this version reads 'ssept_ext events 1'"),
    ],
)
@pytest.mark.parametrize("read", [Interactions.load, SASRecDataSet])
def test_a_file_that_does_not_fit_together_is_named(path, change, reason, read):
    rewrite(path, **change)

    with pytest.raises(ValueError, match=reason) as raised:
        read(path)

    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"1 2\n", pickle.dumps(np.array([{}], object)), b"\xff" * 64, bytes(8), b"PK\x03\x04"],
    ids=["empty", "text", "pickle", "a header without end", "no header", "zip"],
)
def test_a_file_of_another_format_is_named(path, content):
    path.write_bytes(content)

    with pytest.raises(ValueError, match="is damaged or not a safetensors file") as raised:
        Interactions.load(path)

    assert str(path) in str(raised.value)


def test_arrays_that_are_not_aligned_are_refused(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    header += b" " * (4 + -len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    with pytest.raises(ValueError, match="is not aligned in the file"):
        Interactions.load(path)


def test_tensors_of_something_else_are_no_prepared_data(path):
    save_file({"x": torch.zeros(3)}, path)

    with pytest.raises(ValueError, match="holds no prepared data: format None"):
        Interactions.load(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        Interactions.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        Interactions.load(
            (tmp_path / "folder.safetensors").mkdir() or tmp_path / "folder.safetensors"
        )


def test_a_changed_event_is_found_by_the_digest(path):
    rewrite(path, items=torch.tensor([3, 1, 3]))
    histories(Interactions.load(path))

    with pytest.raises(ValueError, match="its content does not match its digest"):
        Interactions.load(path, verify=True)
    with pytest.raises(ValueError, match="its content does not match its digest"):
        load_data({"filename": str(path), "col_sep": None})


@given(damage=damages())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_histories_of_its_ids_or_is_refused(path, damage):
    content = path.read_bytes()
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(damage(content))

    found = read_or_refused(lambda path: histories(Interactions.load(path)), damaged)
    whole = read_or_refused(lambda path: histories(Interactions.load(path, verify=True)), damaged)

    assert whole in (REFUSED, {"bob": [60, 70], "é": [50]})
    assert found == REFUSED or sum(map(len, found.values())) <= 3


def test_texts_with_equal_hashes_are_told_apart(monkeypatch):
    events = of_rows(("bob", 1, 1), ("eve", 1, 2), ("ann", 1, 3))
    monkeypatch.setattr(id_map, "_HASHED_UP_TO", 0)
    monkeypatch.setattr(
        texts.Texts, "hashes", lambda self: np.zeros(len(self.offsets) - 1, np.uint64)
    )

    assert events.user_ids.encode(["ann", "x", "eve", "bob"], "zero").tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_hashes_depend_on_the_text_alone(monkeypatch, chunk):
    strings = [b"", b"a", b"ab", b"a\0", b"ab" * 40, b"ab"]
    expected = [int(texts.Texts.of([string]).hashes()[0]) for string in strings]
    monkeypatch.setattr(texts, "_CHUNK", chunk)

    assert texts.Texts.of(strings).hashes().tolist() == expected
    assert len(set(expected)) == 5
