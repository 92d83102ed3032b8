"""`ssept prepare`, on a few lines written by hand in each format."""

import subprocess
import sys

import pytest
from support.event_files import SAMPLES

from ssept_ext import SASRecDataSet
from ssept_ext.cli import app as cli
from ssept_ext.data.id_map import load_id_maps
from ssept_ext.data.sources.formats import FORMATS, read_source

KEEP_ALL = ["--min-user-events", "1", "--min-item-events", "1"]


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


def test_what_is_written_is_what_the_data_set_reads(write, tmp_path):
    path = write("raw", SAMPLES["csv"][1])
    histories = {}
    for out in ("plain.txt", "packed.txt.gz", "mapped.safetensors"):
        assert cli.main(["prepare", str(path), "--out", str(tmp_path / out), *KEEP_ALL]) == 0
        histories[out] = SASRecDataSet(tmp_path / out).User

    assert [*histories.values()] == [{1: [2, 3, 1], 2: [2]}] * 3
    assert (tmp_path / "packed.txt.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_a_file_to_map_holds_the_raw_ids_itself(write, tmp_path, capsys):
    out = tmp_path / "events.safetensors"

    cli.main(["prepare", str(write("raw", SAMPLES["csv"][1])), "--out", str(out), *KEEP_ALL])

    assert f"wrote  {out}, with the raw ids" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.safetensors", "raw"]
    assert len(SASRecDataSet(out).item_ids) == 3


def test_who_prepares_text_is_told_that_it_keeps_no_times(write, tmp_path, capsys):
    path = write("raw", SAMPLES["csv"][1])
    for flags in ((), ("--time-col", "")):
        out = str(tmp_path / f"events-{len(flags)}.txt")
        assert cli.main(["prepare", str(path), "--out", out, *KEEP_ALL, *flags]) == 0

    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    assert [line.endswith("; only a .safetensors keeps the times") for line in told] == [
        True,
        False,
    ]


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


@pytest.mark.parametrize("exists", ["out.txt", "out.txt.ids.json", "out.safetensors"])
def test_nothing_is_overwritten(write, tmp_path, exists, capsys):
    path, old = write("raw", SAMPLES["csv"][1]), write(exists, "precious")
    out = tmp_path / exists.removesuffix(".ids.json")

    assert cli.main(["prepare", str(path), "--out", str(out), *KEEP_ALL]) == 2

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
