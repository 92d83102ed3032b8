"""Files of public data sets: formats are told by their content, and what is no event is named."""

import gzip
import json
import zipfile

import pytest
from support.event_files import SAMPLES

from ssept_ext.data.sources.columns import Columns
from ssept_ext.data.sources.formats import read_source


def test_ids_keep_the_type_they_have(write):
    types = {}
    for name in ("movielens-1m", "amazon-2014-csv", "steam", "csv"):
        _, _, events = read_source(write(name, SAMPLES[name][1]))
        types[name] = [events.users.ids.raw[0], events.items.ids.raw[1]]

    assert types == {
        "movielens-1m": [9, 10],
        "amazon-2014-csv": ["A9AAAAAAAAAAA", "0000000010"],
        "steam": ['9é"', "10"],
        "csv": [9, 10],
    }


@pytest.mark.parametrize("format_name", ["movielens-100k", "movielens-1m", "movielens-csv"])
@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_the_events_are_found_among_other_files(write, tmp_path, format_name, packed):
    name, text = SAMPLES[format_name]
    others = {
        "ml/README": "not events",
        f"ml/{name}": text,
        "ml/movies.csv": "movieId,title\n1,x\n",
    }
    if packed:
        source = tmp_path / "ml.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in others.items():
                archive.writestr(member, content)
    else:
        for member, content in others.items():
            write(f"data/{member}", content)
        source = tmp_path / "data"

    found, detected, events = read_source(source)

    assert found == f"{source}/ml/{name}"
    assert detected == format_name
    assert events.users.codes.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("format_name", ["amazon-json", "steam", "csv", "movielens-1m"])
def test_gzip_is_told_by_content(write, format_name):
    path = write("raw", gzip.compress(SAMPLES[format_name][1].encode()))

    assert read_source(path)[1] == format_name


@pytest.mark.parametrize("format_name", ["movielens-csv", "amazon-2023-csv", "csv"])
def test_a_quoted_header_is_told_too(write, format_name):
    header, rest = SAMPLES[format_name][1].split("\n", 1)
    quoted = '"' + header.replace(",", '","').replace(";", '";"') + '"'

    assert read_source(write("raw", f"{quoted}\n{rest}"))[1] == format_name


@pytest.mark.parametrize("format_name", ["amazon-json", "movielens-csv", "csv"])
def test_a_byte_order_mark_is_no_content(write, format_name):
    path = write("raw", b"\xef\xbb\xbf" + SAMPLES[format_name][1].encode())

    assert read_source(path)[1] == format_name


def test_columns_of_a_csv_are_named(write):
    path = write("log", "when|who|what\n2020-01-02|a|x\n2020-01-01|a|y\n")

    _, name, events = read_source(path, columns=Columns("who", "what", "when"))

    assert name == "csv"
    assert events.times.astype(str).tolist() == ["2020-01-02", "2020-01-01"]


@pytest.mark.parametrize("name", ["rating.csv", "archive.zip"])
def test_kaggles_layout_of_movielens_has_times_as_text(write, tmp_path, name):
    text = (
        '"userId","movieId","rating","timestamp"\n1,2,3.5,"2005-04-02 23:53:47"\n'
        '1,29,3.5,"2005-04-02 23:31:16"\n'
    )
    path = write("rating.csv", text)
    if name.endswith(".zip"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in {"movie.csv": "x", "rating.csv": text, "tag.csv": "y"}.items():
                archive.writestr(member, content)

    _, format_name, events = read_source(path)

    assert format_name == "movielens-csv"
    assert events.items.ids.raw.tolist() == [2, 29]
    assert events.times.astype(str).tolist() == ["2005-04-02T23:53:47", "2005-04-02T23:31:16"]


@pytest.mark.parametrize("format_name", ["amazon-json", "steam"])
@pytest.mark.parametrize("depth", [1000, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":', "{'a':", "-", "("])
def test_a_deeply_nested_line_is_named(write, format_name, depth, opening):
    text = SAMPLES[format_name][1]

    with pytest.raises(ValueError, match="line 5: neither a JSON object nor a Python dict"):
        read_source(write("raw", text + "{'x':" + opening * depth + "\n"), format_name)


def test_ids_that_differ_only_in_writing_are_counted_in_a_warning(write):
    lines = [
        f'{{"reviewerID": "{key}", "asin": "B", "unixReviewTime": 1}}\n'
        for key in ("1", "1.0", " 1")
    ]

    with pytest.warns(UserWarning, match="column 'reviewerID': 2 ids differ"):
        read_source(write("raw", "".join(lines)))


def test_a_given_format_overrides_the_content(write):
    path = write("raw", "1\t2\t3\t4\n")

    assert read_source(path)[1] == "movielens-100k"
    with pytest.raises(
        ValueError, match=r"raw, line 1: 4 columns expected, got 1: '1\\t2\\t3\\t4'"
    ):
        read_source(path, "movielens-1m")


def test_a_long_line_is_shown_in_part(write):
    path = write("raw", json.dumps({"reviewerID": "A", "asin": "B", "unixReviewTime": "x" * 999}))

    with pytest.raises(ValueError, match="line 1: ") as caught:
        read_source(path)

    assert "…" in str(caught.value).split("line 1: ")[1]
    assert len(str(caught.value).split(": '")[-1]) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "raw is empty"),
        (b"\n \n", "raw is empty"),
        (
            b"title\nHello\n",
            r"raw is of no known format.*'user', 'item', 'timestamp'.*--format.*'title'",
        ),
        (b'{"name": 1}\n', "raw is of no known format"),
        (b"PK\x03\x04 and nothing else", "raw is of no known format"),
        (gzip.compress(SAMPLES["steam"][1].encode() * 50, mtime=0)[:-20], "raw is damaged"),
        (gzip.compress(SAMPLES["csv"][1].encode() * 50, mtime=0)[:-20], "raw is damaged"),
    ],
)
def test_files_that_hold_no_events_are_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_source(write("raw", content))


def test_a_damaged_archive_is_refused(write, tmp_path):
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml/u.data", SAMPLES["movielens-100k"][1])
    data = (tmp_path / "ml.zip").read_bytes()
    path = write("ml.zip", data.replace(b"9\t30\t4\t300", b"9\t31\t4\t300"))

    with pytest.raises(ValueError, match=r"ml\.zip/ml/u\.data is damaged: Bad CRC-32"):
        read_source(path)


@pytest.mark.parametrize("names", [[], ["a.txt", "b.txt"], ["x/u.data", "y/u.data"]])
def test_a_folder_without_one_file_of_events_is_refused(write, tmp_path, names):
    (tmp_path / "data").mkdir()
    for name in names:
        write(f"data/{name}", "1\t2\t3\t4\n")

    with pytest.raises(ValueError, match=f"data holds {len(names)} files that may be the events"):
        read_source(tmp_path / "data")


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_source(tmp_path / "none")
