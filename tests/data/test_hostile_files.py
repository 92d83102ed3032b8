"""Files that are not what they seem: an error names the file and what it is, or every event is read."""

import gzip
import io
import os
import re
import threading
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest
from support.interactions import histories

from ssept_ext import Interactions, SASRecDataSet
from ssept_ext.data.sources.formats import read_source

CSV = b"user,item,timestamp\n1,2,3\n1,4,5\n"
READERS = {
    "from_csv": (lambda path: histories(Interactions.from_csv(path)), CSV),
    "read_source": (
        lambda path: histories(Interactions.from_events(read_source(path)[2])),
        CSV,
    ),
    "SASRecDataSet": (lambda path: SASRecDataSet(path).User, b"1 2\n1 4\n"),
}
every_reader = pytest.mark.parametrize(("read", "content"), READERS.values(), ids=READERS.keys())


def zipped(content):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml/ratings.csv", content)
    return archive.getvalue()


def patched(archive, offset, value):
    """An archive whose local and central headers have `value` in the field at `offset` of the local one."""
    central = archive.index(b"PK\x01\x02")
    for at in (offset, central + offset + 2):
        archive = archive[:at] + value + archive[at + len(value) :]
    return archive


@every_reader
@pytest.mark.parametrize("num_events", [2, 20_000])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_pipe_is_read_to_its_end(tmp_path, read, content, num_events, compress):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    line = content.splitlines(keepends=True)[-1]
    text = compress(content + line * (num_events - 2))
    writer = threading.Thread(target=pipe.write_bytes, args=(text,))
    writer.start()

    found = read(pipe)

    writer.join()
    assert len(found[1]) == num_events


@every_reader
@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda text: text.decode().encode("utf-16"), "UTF-16"),
        (lambda text: text.decode().encode("utf-16-le"), "binary"),
        (lambda text: b"PAR1" + text, "a Parquet file"),
        (lambda text: b"\xfd7zXZ\0" + text, "binary"),
        (lambda text: b"\x7fELF\0\0" + text, "binary"),
        (lambda text: gzip.compress(zipped(text)), "a zip archive"),
    ],
)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path, read, content, wrap, kind):
    (tmp_path / "log").write_bytes(wrap(content))

    with pytest.raises(ValueError, match=f"log is of no known format: it is {kind}, and must be"):
        read(tmp_path / "log")


@pytest.mark.parametrize("name", ["from_csv", "SASRecDataSet"])
def test_a_zip_archive_is_for_prepare_only(tmp_path, name):
    read, content = READERS[name]
    (tmp_path / "log.csv").write_bytes(zipped(content))

    with pytest.raises(ValueError, match=r"log\.csv is of no known format: it is a zip archive"):
        read(tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (6, b"\x01\x00", "encrypted"),
        (8, b"\x09\x00", "compression method is not supported"),  # Deflate64
        (8, b"\x63\x00", "compression method is not supported"),  # AES
    ],
)
def test_an_archive_that_needs_another_program_says_why(tmp_path, offset, value, reason):
    (tmp_path / "ml.zip").write_bytes(patched(zipped(CSV), offset, value))

    with pytest.raises(ValueError, match=rf"ml\.zip/ml/ratings\.csv cannot be read, .*{reason}"):
        read_source(tmp_path / "ml.zip")


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_what_operating_systems_add_is_not_taken_for_events(tmp_path, packed):
    others = {
        ".DS_Store": b"\0\0",
        "__MACOSX/._log.csv": b"\0\0",
        "__MACOSX/ratings.csv": b"\0",
        "Thumbs.db": b"\0",
    }
    if packed:
        archive = tmp_path / "log.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name, text in ({"a/log.csv": CSV} | others).items():
                file.writestr(name, text)
    else:
        archive = tmp_path / "log"
        for name, text in ({"a/log.csv": CSV} | others).items():
            (archive / name).parent.mkdir(parents=True, exist_ok=True)
            (archive / name).write_bytes(text)

    assert read_source(archive)[0] == f"{archive}/a/log.csv"


def test_a_gzip_file_in_an_archive_is_decompressed(tmp_path):
    (tmp_path / "ml.zip").write_bytes(zipped(gzip.compress(CSV)))

    assert READERS["read_source"][0](tmp_path / "ml.zip") == {1: [2, 4]}


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b""])
def test_a_parquet_file_of_any_damage_is_named(tmp_path, content):
    (tmp_path / "log.parquet").write_bytes(content)

    with pytest.raises(ValueError, match=r"log\.parquet: "):
        Interactions.from_parquet(tmp_path / "log.parquet")


def test_a_parquet_file_that_is_not_there_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Interactions.from_parquet(tmp_path / "none.parquet")


def test_parts_of_a_parquet_folder_with_other_columns_are_an_error_that_names_it(tmp_path):
    pa.parquet.write_table(
        pa.table({"user": [1], "item": [1], "timestamp": [1]}), tmp_path / "a.parquet"
    )
    pa.parquet.write_table(
        pa.table({"user": [[1]], "item": [1], "timestamp": [1]}), tmp_path / "b.parquet"
    )

    with pytest.raises((ValueError, TypeError), match=re.escape(str(tmp_path))):
        Interactions.from_parquet(tmp_path)


WIDE = "x," * 200_000


@pytest.mark.parametrize(
    "content",
    [f"user,item,timestamp\n{WIDE}\n", f"{WIDE}\n", f"user,item,timestamp\n1,2,{WIDE}\n"],
    ids=["a wide line", "a wide header", "a long line"],
)
@pytest.mark.parametrize("name", READERS)
def test_an_error_shows_the_beginning_of_what_is_long(tmp_path, name, content):
    (tmp_path / "log").write_text(content)

    with pytest.raises(ValueError, match="log") as caught:
        READERS[name][0](tmp_path / "log")

    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["x" * 2_000_000, "[" * 2_000_000])
def test_an_error_shows_the_beginning_of_a_long_id(tmp_path, key):
    for make_error in (
        lambda: SASRecDataSet(histories={1: [key]}),
        lambda: Interactions.from_dataframe(pa.table({key: [1]})),
        lambda: Interactions.from_dataframe(
            pa.table({"user": [1], "item": [1], "timestamp": [key]})
        ),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            make_error()
        assert len(str(caught.value)) < 1000
