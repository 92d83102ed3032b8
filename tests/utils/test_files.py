"""Files are replaced in one step, also on file systems without locks."""

import errno
import fcntl
import json
import os
import re

import pytest

from ssept_ext.utils.files import lock_file, read_json, replace_file, write_json


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_two_writers_do_not_disturb_each_other(tmp_path, without_locks):
    path = tmp_path / "file"

    def write_slowly(part):
        replace_file(path, lambda other: other.write_text("of the other"))
        part.write_text("of the last")

    replace_file(path, write_slowly)

    assert path.read_text() == "of the last"
    assert list(tmp_path.iterdir()) == [path]


def test_without_locks_a_lock_file_is_held_all_the_same(tmp_path, without_locks):
    path = tmp_path / "lock"
    with lock_file(path):
        assert path.exists()
    assert not path.exists()


def test_a_lock_file_has_one_holder(tmp_path):
    with (
        lock_file(tmp_path / "lock"),
        pytest.raises(BlockingIOError),
        lock_file(tmp_path / "lock"),
    ):
        pass


def test_the_next_writer_removes_what_a_killed_one_has_left(tmp_path):
    path = tmp_path / "file"

    def killed(part):
        part.write_text("half")
        os._exit(9)

    if not (child := os.fork()):
        replace_file(path, killed)
    os.waitpid(child, 0)
    assert [left.name.startswith(".file.") for left in tmp_path.iterdir()] == [True]

    replace_file(path, lambda part: part.write_text("whole"))

    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a": 1, "new": 2}, "unknown keys ['new']: was it written by a later version of"),
        ({"b": 1}, "is damaged or was not written by ssept_ext: it lacks ['a']"),
        ([1], "is damaged or was not written by ssept_ext: it lacks ['a']"),
    ],
)
def test_keys_that_are_missing_or_unknown_are_named(tmp_path, record, message):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))

    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_json(path, ("a",), ("b",))

    assert str(path) in str(error.value)


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "record.json", {"a": 1})

    assert read_json(tmp_path / "record.json", ("a",), ("b",)) == {"a": 1}
