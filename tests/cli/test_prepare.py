"""`ssept prepare`, on a few lines written by hand in each format."""

import gzip
import json
import subprocess
import sys
import zipfile

import pytest

from ssept_ext import SASRecDataSet
from ssept_ext.cli import app as cli
from ssept_ext.data.id_map import load_id_maps
from ssept_ext.data.sources.columns import Columns
from ssept_ext.data.sources.formats import FORMATS, read_source

# In each, the first user has the items "late", "early", "mid" in this order of lines.
SAMPLES = {
    "movielens-100k": ("u.data", "9\t30\t4\t300\n9\t10\t1\t100\n9\t20\t5\t200\n8\t10\t3\t150\n"),
    "movielens-1m": (
        "ratings.dat",
        "9::30::4::300\n9::10::1::100\n9::20::5::200\n8::10::3.5::150\n",
    ),
    "movielens-csv": (
        "ratings.csv",
        "userId,movieId,rating,timestamp\n9,30,4.5,300\n9,10,1.0,100\n9,20,5.0,200\n8,10,3.0,150\n",
    ),
    "amazon-json": (
        "reviews.json",
        '{"reviewerID": "A9", "asin": "B30", "reviewText": "a \\"b\\"\\n", "unixReviewTime": 300}\n'
        '{"reviewerID": "A9", "asin": "B10", "unixReviewTime": 100}\n'
        '{"asin": "B20", "reviewerID": "A9", "overall": 5.0, "unixReviewTime": 200}\n'
        '{"reviewerID": "A8", "asin": "B10", "unixReviewTime": 150}\n',
    ),
    "amazon-2023-json": (
        "All_Tests.jsonl",
        '{"user_id": "A9", "asin": "x", "parent_asin": "B30", "timestamp": 1588615855070}\n'
        '{"user_id": "A9", "asin": "y", "parent_asin": "B10", "timestamp": 1588615855068}\n'
        '{"user_id": "A9", "asin": "z", "parent_asin": "B20", "timestamp": 1588615855069}\n'
        '{"user_id": "A8", "asin": "z", "parent_asin": "B10", "timestamp": 1}\n',
    ),
    "amazon-2014-csv": (
        "ratings_Tests.csv",
        "A9AAAAAAAAAAA,B000000030,4.0,300\nA9AAAAAAAAAAA,0000000010,1.0,100\n"
        "A9AAAAAAAAAAA,000000020X,5.0,200\nA8AAAAAAAAAAA,0000000010,3.0,150\n",
    ),
    "amazon-2018-csv": (
        "Tests.csv",
        "B000000030,A9AAAAAAAAAAA,4.0,300\n0000000010,A9AAAAAAAAAAA,1.0,100\n"
        "000000020X,A9AAAAAAAAAAA,5.0,200\n0000000010,A8AAAAAAAAAAA,3.0,150\n",
    ),
    "amazon-2023-csv": (
        "All_Tests.csv",
        "user_id,parent_asin,rating,timestamp\nA9,B30,4.0,300\nA9,B10,1.0,100\nA9,B20,5.0,200\n"
        "A8,B10,3.0,150\n",
    ),
    "steam": (
        "steam_reviews.json",
        "{u'username': u'9\\xe9\"', u'product_id': u'30', u'date': u'2017-12-17', u'text': u'it\\'s'}\n"
        "{u'username': u'9\\xe9\"', u'product_id': u'10', u'date': u'2017-11-30', u'hours': 0.1}\n"
        "{u'username': u'9\\xe9\"', u'product_id': u'20', u'date': u'2017-12-02', u'early': False}\n"
        "{u'username': u'8', u'product_id': u'10', u'date': u'2015-01-01', u'x': None}\n",
    ),
    "csv": ("log.csv", "item;user;timestamp\n30;9;300\n10;9;100\n20;9;200\n10;8;150\n"),
}
KEEP_ALL = ["--min-user-events", "1", "--min-item-events", "1"]


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


@pytest.mark.parametrize("format_name", [*FORMATS, "csv"])
def test_every_format_is_told_by_its_content_and_read(write, tmp_path, format_name, capsys):
    _, text = SAMPLES[format_name]
    out = tmp_path / "events.txt"

    code = cli.main(["prepare", str(write("raw", text)), "--out", str(out), *KEEP_ALL])

    assert code == 0
    assert f"raw ({format_name}): 4 events, 2 users, 3 items" in capsys.readouterr().out
    assert SASRecDataSet(out).User == {1: [2, 3, 1], 2: [2]}
    users, items = load_id_maps(f"{out}.ids.json")
    assert ["9" in str(user) for user in users.raw] == [True, False]
    assert [key for item in items.raw for key in ("30", "10", "20") if key in str(item)] == [
        "30",
        "10",
        "20",
    ]


def test_ids_keep_the_type_they_have(write):
    types = {}
    for name in ("movielens-1m", "amazon-2014-csv", "steam", "csv"):
        _, _, events = read_source(write(name, SAMPLES[name][1]))
        types[name] = [events.users.ids[0], events.items.ids[1]]

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


def test_what_is_written_is_what_the_data_set_reads(write, tmp_path):
    path = write("raw", SAMPLES["csv"][1])
    histories = {}
    for out in (tmp_path / "plain.txt", tmp_path / "packed.txt.gz"):
        assert cli.main(["prepare", str(path), "--out", str(out), *KEEP_ALL]) == 0
        histories[out.name] = SASRecDataSet(out).User

    assert histories["plain.txt"] == histories["packed.txt.gz"] == {1: [2, 3, 1], 2: [2]}
    assert (tmp_path / "packed.txt.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_five_events_are_asked_of_users_and_items_if_nothing_is_said(write, tmp_path, capsys):
    rows = [f"{user},{item}" for user in range(5) for item in range(5)] + ["7,0", "0,9"]
    path, out = write("log.csv", "user,item\n" + "\n".join(rows)), tmp_path / "out.txt"

    assert cli.main(["prepare", str(path), "--time-col", "", "--out", str(out)]) == 0

    assert "kept   25 events, 5 users, 5 items" in capsys.readouterr().out
    assert SASRecDataSet(out).User == {user: [1, 2, 3, 4, 5] for user in range(1, 6)}


def test_duplicates_are_dropped_as_asked(write, tmp_path):
    path, out = write("log.csv", "user,item\n1,5\n1,6\n1,5\n"), tmp_path / "out.txt"

    cli.main(
        [
            "prepare",
            str(path),
            "--time-col",
            "",
            "--duplicates",
            "last",
            "--out",
            str(out),
            *KEEP_ALL,
        ]
    )

    assert SASRecDataSet(out).User == {1: [2, 1]}


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
    assert events.items.ids.tolist() == [2, 29]
    assert events.times.astype(str).tolist() == ["2005-04-02T23:53:47", "2005-04-02T23:31:16"]


def test_without_quoting_an_open_quote_is_text(write, tmp_path, capsys):
    path = write("log.tsv", 'user\ttitle\ttimestamp\n1\t"Heroes\t2\n1\tplain\t1\n')
    out = tmp_path / "out.txt"
    arguments = ["prepare", str(path), "--out", str(out), "--item-col", "title", *KEEP_ALL]

    assert cli.main(arguments) == 2
    assert "line 2: a quote opens a field and is not closed" in capsys.readouterr().err
    assert cli.main([*arguments, "--no-quoting"]) == 0
    assert load_id_maps(f"{out}.ids.json")[1].raw.tolist() == ['"Heroes', "plain"]


@pytest.mark.parametrize("out", ["none/out.txt", "raw/out.txt", "none/deeper/out.txt"])
def test_a_folder_that_is_not_there_is_reported_before_anything_is_read(
    write, tmp_path, out, capsys
):
    path = write("raw", "not events")

    assert cli.main(["prepare", str(path), "--out", str(tmp_path / out)]) == 2

    error = capsys.readouterr().err
    assert f"--out: {(tmp_path / out).parent} is not a folder" in error


def test_a_pipe_is_read_to_its_end(tmp_path):
    lines = "".join(f"{event % 50},{event % 70},{event}\n" for event in range(10_000))
    command = [sys.executable, "-m", "ssept_ext", "prepare", "/dev/stdin", "--out", "out.txt"]

    run = subprocess.run(
        command,
        input=f"user,item,timestamp\n{lines}",
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    )

    assert "10,000 events" in run.stdout
    assert "10,000 events" in run.stdout.split("kept")[1]


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


@pytest.mark.parametrize(
    ("format_name", "line", "reason"),
    [
        ("movielens-100k", "9\t10\t3", "4 columns expected, got 3"),
        ("movielens-100k", "x\t10\t3\t1", "user must be an integer"),
        ("movielens-1m", "9::10::3::noon", "time must be an integer"),
        ("movielens-1m", "9:10:3:1", "4 columns expected, got 1"),
        ("movielens-csv", "9,10.5,3.0,1", "movieId must be an integer"),
        ("movielens-csv", "9,10,3.0,1.5", "timestamp must be an integer"),
        ("amazon-2014-csv", "A9AAAAAAAAAAA,,1.0,100", "item is missing"),
        ("amazon-2018-csv", "0000000010,A8,3.0,never", "time must be a number"),
        ("amazon-2023-csv", "A9,B1,3.0", "4 columns expected, got 3"),
        ("amazon-json", '{"reviewerID": "A9", "asin": "B1"}', "unixReviewTime is missing"),
        ("amazon-json", '{"reviewerID": "A9", "asin": ', "neither a JSON object nor a Python dict"),
        ("amazon-json", '["A9", "B1", 1]', "neither a JSON object"),
        ("amazon-json", '{"reviewerID": 9, "asin": "B1", "unixReviewTime": 1}', "must be strings"),
        ("amazon-json", '{"reviewerID": "", "asin": "B1", "unixReviewTime": 1}', "must be strings"),
        (
            "amazon-2023-json",
            '{"user_id": "A", "parent_asin": "B", "timestamp": "1"}',
            "time must be an integer of 64 bits, got '1'",
        ),
        (
            "amazon-2023-json",
            f'{{"user_id": "A", "parent_asin": "B", "timestamp": {2**63}}}',
            "time must be an integer of 64 bits",
        ),
        (
            "steam",
            "{u'username': u'a', u'product_id': u'1', u'date': u'17 Dec'}",
            "Invalid isoformat",
        ),
        ("steam", "{u'username': open('x')}", "neither a JSON object nor a Python dict"),
        ("csv", "10;9", "3 columns expected, got 2"),
    ],
)
def test_a_malformed_line_is_named_by_file_number_and_text(
    write, tmp_path, format_name, line, reason, capsys
):
    first, rest = SAMPLES[format_name][1].split("\n", 1)
    path, out = write("raw", f"{first}\n\n{line}\n{rest}"), tmp_path / "out.txt"

    with pytest.raises(ValueError, match=r"raw, line 3: ") as caught:
        read_source(path)
    code = cli.main(["prepare", str(path), "--out", str(out)])

    assert reason in str(caught.value)
    assert repr(line) in str(caught.value)
    assert code == 2
    assert "raw, line 3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


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


@pytest.mark.parametrize("exists", ["out.txt", "out.txt.ids.json"])
def test_nothing_is_overwritten(write, tmp_path, exists, capsys):
    path, old = write("raw", SAMPLES["csv"][1]), write(exists, "precious")

    assert cli.main(["prepare", str(path), "--out", str(tmp_path / "out.txt"), *KEEP_ALL]) == 2

    assert f"{exists} exists" in capsys.readouterr().err
    assert old.read_text() == "precious"


@pytest.mark.parametrize("arguments", [[], ["x", "--download", "ml-1m"]])
def test_exactly_one_source_is_needed(arguments, tmp_path, capsys):
    assert cli.main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "give either SOURCE or --download" in capsys.readouterr().err


def test_events_that_the_filter_removes_are_an_error(write, tmp_path, capsys):
    path = write("raw", SAMPLES["csv"][1])

    assert cli.main(["prepare", str(path), "--out", str(tmp_path / "out.txt")]) == 2
    assert "no event is left of 4" in capsys.readouterr().err
