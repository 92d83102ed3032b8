"""`ssept predict`: for users, a file of them, all of them, or a live history; printed, or written to a file."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.command_line import train

from ssept_ext import SASREC, SSEPT, SASRecDataSet, cli
from ssept_ext.cli import predict


def written(path):
    """The rows of a CSV file, without its scores."""
    with open(path, newline="") as file:
        return [(row["user"], row["item"], int(row["rank"])) for row in csv.DictReader(file)]


def recommended(users, k, histories=None):
    found = SSEPT.from_pretrained("run").recommend(histories, users=users, k=k)
    return list(zip(found["user"], found["item"], found["rank"], strict=True))


def test_predict_prints_the_best_unseen_items(run, data, capsys):
    code = cli.main(["predict", run, "--users", "14", "2", "-k", "4"])

    assert code == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["user", "rank", "item", "score"]
    model, dataset = SASREC.from_pretrained(run), SASRecDataSet(data)
    expected = []
    for user in (14, 2):
        history = dataset.User[user]
        candidates = [item for item in range(1, 31) if item not in history]
        scores = model.predict(
            {
                "user": torch.tensor([[user]]),
                "input_seq": torch.tensor([([0] * 6 + history)[-6:]]),
                "candidate": torch.tensor([candidates]),
            }
        )[0].tolist()
        best = sorted(zip(scores, candidates, strict=True), reverse=True)[:4]
        expected += [(user, rank, item) for rank, (_, item) in enumerate(best, 1)]
    assert [tuple(map(int, line.split()[:3])) for line in lines] == expected


def test_a_compressed_table_recommends_by_rounded_vectors(run, data, capsys):
    cli.main(["predict", run, "--users", "14", "-k", "4", "--table", "int8"])

    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    model, dataset = SASREC.from_pretrained(run).compress("int8"), SASRecDataSet(data)
    items, scores = model.recommend(dataset, [14], k=4)
    assert [int(row[2]) for row in rows] == items[0].tolist()
    assert [row[3] for row in rows] == [f"{score:.4f}" for score in scores[0]]


def test_predict_takes_users_from_several_flags(run, capsys):
    assert cli.main(["predict", run, "--users", "2", "1", "--users=5", "-k1"]) == 0

    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["2", "1", "5"]


def test_predict_prints_fewer_where_fewer_are_unseen(run, data, capsys):
    cli.main(["predict", run, "--users", "1", "-k", "1000"])

    lines = capsys.readouterr().out.splitlines()[1:]
    unseen = set(range(1, 31)) - set(SASRecDataSet(data).User[1])
    assert {int(line.split()[2]) for line in lines} == unseen
    assert len(lines) == len(unseen)


def test_raw_ids_are_asked_for_and_printed(raw_run, capsys):
    assert cli.main(["predict", "run", "--users", "user-3", "user-0"]) == 0

    head, *rows = (line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines())
    assert head == ["user", "rank", "item  score"] or head[:2] == ["user", "rank"]
    expected = SSEPT.from_pretrained("run").recommend(users=["user-3", "user-0"], k=10)
    assert [(user, int(rank), rest.rsplit(maxsplit=1)[0]) for user, rank, rest in rows] == list(
        zip(expected["user"], expected["rank"], expected["item"], strict=True)
    )
    assert cli.main(["predict", "run", "--users", "3"]) == 2
    assert (
        "user 3 has no events in the data, whose users are 15 raw ids: give --history"
        in capsys.readouterr().err
    )


def test_ids_may_begin_with_a_dash(tmp_path, capsys):
    rng = np.random.default_rng(0)
    events = [(user, i) for user in ("-k", "--x", "-5", "-abc") for i in rng.permutation(20)[:9]]
    lines = "".join(f"{user},{item},{time}\n" for time, (user, item) in enumerate(events))
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\n{lines}")
    assert cli.main(["prepare", "events.csv", "--out", "events.txt", "--min-item-events", "1"]) == 0
    assert train("events.txt") == 0
    capsys.readouterr()

    assert (
        cli.main(["predict", "run", "-k", "1", "--users", "-abc", "--x", "-5", "--users=-k"]) == 0
    )

    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["-abc", "--x", "-5", "-k"]


def test_all_users_are_written_in_blocks(raw_run, capsys, monkeypatch):
    monkeypatch.setattr(predict, "_BLOCK", 4)

    assert cli.main(["predict", raw_run, "--all-users", "-k", "3", "--out", "all.csv"]) == 0

    assert capsys.readouterr().out == "all.csv\n"
    assert written("all.csv") == recommended([f"user-{u}" for u in range(15)], 3)


def test_parquet_has_what_csv_has(raw_run, monkeypatch):
    monkeypatch.setattr(predict, "_BLOCK", 4)
    for name in ("all.csv", "all.parquet"):
        assert cli.main(["predict", raw_run, "--all-users", "-k", "3", "--out", name]) == 0

    table = pq.read_table("all.parquet")

    assert table.column_names == ["user", "item", "score", "rank"]
    rows = zip(*(table[name].to_pylist() for name in ("user", "item", "rank")), strict=True)
    assert list(rows) == written("all.csv")


def test_users_of_a_file_without_events_are_left_out_and_counted(raw_run, tmp_path, capsys):
    (tmp_path / "users.txt").write_text("user-7\r\nnobody\n\nuser-2\n")

    flags = ["--users-from", "users.txt", "-k", "2", "--out", "some.csv"]
    assert cli.main(["predict", raw_run, *flags]) == 0

    assert written("some.csv") == recommended(["user-7", "user-2"], 2)
    assert "1 of 3 users have no events in the data, and are left out" in capsys.readouterr().err


def test_a_history_on_the_command_line_replaces_that_in_the_data(raw_run, capsys):
    history = ["item 3", "item 5"]
    flags = ["--users", "user-1", "--history", *history, "gone", "-k", "2"]

    assert cli.main(["predict", raw_run, *flags]) == 0

    told = capsys.readouterr()
    rows = [line.split(maxsplit=2) for line in told.out.splitlines()[1:]]
    found = [(user, rest.rsplit(maxsplit=1)[0], int(rank)) for user, rank, rest in rows]
    assert found == recommended(["user-1"], 2, {"user-1": history})
    assert "1 of 3 items are unknown to the model" in told.err


def test_a_history_without_a_user_is_that_of_an_unknown_one(run, capsys):
    assert cli.main(["predict", run, "--history", "3", "5", "-k", "2"]) == 0

    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["-", "-"]
    assert {row[2] for row in rows}.isdisjoint({"3", "5"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--users", "1", "--all-users"], "give one of --users"),
        (["--history", "3", "--users", "1", "2"], "--history goes with one of --users at most"),
        (["--history", "99"], "--history must have an item that the model knows"),
        (["--users-from", "missing.txt"], "missing.txt"),
        (["--users-from", "nobody.txt"], "none of the users has events in the data"),
        (["--users-from", "latin.txt"], "latin.txt is not UTF-8"),
        (["--all-users", "--out", "all.txt"], "must end in .csv or .parquet"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(run, tmp_path, capsys, flags, message):
    (tmp_path / "nobody.txt").write_text("99\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")

    assert cli.main(["predict", run, *flags]) == 2

    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert message in line


def test_a_file_appears_only_when_it_is_whole(run, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_BLOCK", 4)
    asked = []

    def interrupted(*arguments, **options):
        if asked:
            raise KeyboardInterrupt
        asked.append(arguments)
        return honest(*arguments, **options)

    honest = predict.recommend_by_index
    monkeypatch.setattr(predict, "recommend_by_index", interrupted)

    assert cli.main(["predict", run, "--all-users", "--out", "all.csv"]) == 130
    assert not (tmp_path / "all.csv").exists()
