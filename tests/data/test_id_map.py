"""Raw ids to numbers and back."""

import hashlib
import json
from uuid import UUID

import numpy as np
import pandas as pd
import pytest

from ssept_ext.data import id_map
from ssept_ext.data.id_map import IdMap, load_id_maps, save_id_maps

UUIDS = [UUID(int=7), UUID(int=2**127 + 1)]


@pytest.fixture(autouse=True, params=[10**6, 0], ids=["few ids", "many ids"])
def _number_of_ids(request, monkeypatch):
    """Look ids up as in a map of few or of many."""
    monkeypatch.setattr(id_map, "_HASHED_UP_TO", request.param)


@pytest.mark.parametrize(
    ("raw", "name", "kind"),
    [
        ([30, -(2**63), 2**63 - 1], "int64", int),
        (np.array([3, 1], np.uint8), "int64", int),
        (["b", "a", "", "7", "Größe\n☃"], "str", str),
        (UUIDS, "uuid", UUID),
        ([], "int64", int),
    ],
)
def test_every_id_comes_back_with_its_type(raw, name, kind):
    ids = IdMap(raw)
    numbers = ids.encode(raw)

    assert ids.type == name
    assert numbers.dtype == np.int64
    assert numbers.tolist() == list(range(1, len(raw) + 1))
    assert ids.decode(numbers).tolist() == list(raw)
    assert all(type(key) is kind for key in ids.decode(numbers).tolist())


def test_decode_keeps_the_shape():
    assert IdMap(["a", "b"]).decode([[1, 2], [2, 1]]).tolist() == [["a", "b"], ["b", "a"]]


def test_an_unknown_id_is_named_with_its_place_and_how_many_there_are():
    with pytest.raises(
        KeyError, match=r"item 'y' at position 1 is unknown, one of 2 of 3: .* 1 of type str"
    ):
        IdMap(["x"], "item").encode(["x", "y", "z"])


def test_unknown_ids_may_become_padding():
    assert IdMap([5, 6]).encode([6, 7, 5], unknown="zero").tolist() == [2, 0, 1]


def test_a_number_and_its_text_are_different_ids():
    assert IdMap([7]).encode(["7"], unknown="zero").tolist() == [0]
    assert IdMap(["7"]).encode(np.array([7]), unknown="zero").tolist() == [0]


@pytest.mark.parametrize("key", [True, 1.0, np.True_, np.float64(1), None, "1"])
def test_what_only_equals_an_id_is_unknown(key):
    assert IdMap([1, 2]).encode([2, key], unknown="zero").tolist() == [2, 0]


def test_integers_of_numpy_are_ids():
    assert IdMap([1, 2]).encode([np.int32(2), 1]).tolist() == [2, 1]


@pytest.mark.parametrize("numbers", [[1.0], [True], ["1"], np.array([1.7])])
def test_what_is_no_number_is_not_decoded(numbers):
    with pytest.raises(TypeError, match="item numbers must be integers, got"):
        IdMap(["a", "b"], "item").decode(numbers)


@pytest.mark.parametrize("raw", ["ab", b"ab", {"a": 1}, {"a"}, np.array([["a"]]), np.array("a")])
def test_what_has_no_order_or_is_one_id_is_no_sequence_of_ids(raw):
    message = f"raw must be a sequence of ids, got {type(raw).__name__}"
    with pytest.raises(TypeError, match=message):
        IdMap(["a", "b"], "user").encode(raw)
    with pytest.raises(TypeError, match=message):
        IdMap(raw, "user")


@pytest.mark.parametrize("make", [tuple, pd.Series, np.array, iter])
def test_ids_may_come_in_any_sequence(make):
    assert IdMap(make(["a", "b"])).encode(make(["b", "a"])).tolist() == [2, 1]


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_number_outside_the_map_is_named(number):
    with pytest.raises(IndexError, match=rf"item number {number} is outside 1\.\.2"):
        IdMap(["a", "b"], "item").decode([1, number])


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (["a", "b", "a"], ValueError, "user 'a' is there 2 times"),
        (["a", 1], TypeError, "1 of type int"),
        ([1.5], TypeError, "1.5 of type float"),
        ([True], TypeError, "True of type bool"),
        ([2**63], ValueError, "user 9223372036854775808 is beyond int64"),
        (np.array([2**63], np.uint64), ValueError, "user 9223372036854775808 is beyond int64"),
    ],
)
def test_ids_that_make_no_map_are_refused(raw, error, message):
    with pytest.raises(error, match=message):
        IdMap(raw, "user")


def test_a_wrong_rule_for_unknown_ids_is_refused():
    with pytest.raises(ValueError, match="unknown must be one of .*, got 'drop'"):
        IdMap([1]).encode([1], unknown="drop")


def test_maps_are_equal_by_content_and_type():
    assert IdMap([1, 2]) == IdMap(np.array([1, 2]), "item")
    assert IdMap([1, 2]) != IdMap([2, 1])
    assert IdMap([1]) != IdMap(["1"])


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("raw", [[5, -3], UUIDS, ["a", "b c", "~"], ["a", 'q"', "\\", "é", "\n"]])
def test_the_digest_is_that_of_the_record_as_json(raw, chunk, monkeypatch):
    monkeypatch.setattr(id_map, "_CHUNK", chunk)
    ids = IdMap(raw)

    text = json.dumps(ids.to_dict()).encode()

    assert ids.digest == hashlib.sha256(text).hexdigest()[:16]


@pytest.mark.parametrize("histories", [None, "0123456789abcdef"])
def test_a_file_is_the_record_and_its_digest_as_json(tmp_path, histories):
    users, items = IdMap(UUIDS, "user"), IdMap(["7", 'q"', "é"], "item")
    record = {"format": 1, "users": users.to_dict(), "items": items.to_dict()}
    record |= {} if histories is None else {"histories": histories}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]

    save_id_maps(tmp_path / "ids.json", users, items, histories)

    text = (tmp_path / "ids.json").read_text()
    assert text == json.dumps({**record, "digest": digest}) + "\n"


def test_a_file_brings_both_maps_back(tmp_path):
    users, items = IdMap(UUIDS, "user"), IdMap(["7", "\ud800 alone", "a\nb"], "item")

    save_id_maps(tmp_path / "ids.json", users, items)
    loaded = load_id_maps(tmp_path / "ids.json")

    assert loaded == (users, items)
    assert [ids.noun for ids in loaded] == ["user", "item"]


@pytest.mark.parametrize("raw", [[], [2**62, 5], ["x"], UUIDS])
def test_a_record_is_plain_json(raw):
    ids = IdMap(raw)

    assert IdMap.from_dict(json.loads(json.dumps(ids.to_dict()))) == ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 1, "users": {"type": "int64", "ids": [1]}}',
        '{"format": 1, "users": {"type": "int64", "ids": ["1"]}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "int64", "ids": [1, 1]}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "uuid", "ids": ["x"]}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "str", "ids": "ab"}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "str", "ids": {"a": 1}}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "int64", "ids": [1, true]}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "int64", "ids": [NaN]}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "int64", "ids": [[1]]}, "items": {"type": "str", "ids": []}}',
        '{"format": 1, "users": {"type": "uuid", "ids": [1]}, "items": {"type": "str", "ids": []}}',
        '{"format": [1], "users": {}, "items": {}}',
        '{"format": 1, "users": ' + "[" * 100_000,
        '{"format": 1, "users": {"type": "int64", "ids": [' + "9" * 10_000 + "]}}",
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "ids.json").write_text(text)

    with pytest.raises(ValueError, match=r"ids\.json is damaged or holds no id maps") as caught:
        load_id_maps(tmp_path / "ids.json")

    assert len(str(caught.value)) < 1000
