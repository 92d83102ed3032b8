"""`ssept train --split time`: the moments are recorded, and every later command splits at them."""

import csv
import json

import numpy as np
import pytest
from support.command_line import main, train

from ssept_ext import SASREC, SASRecDataSet
from ssept_ext.evaluation import evaluate_ranks


@pytest.fixture
def timed(data, tmp_path):
    """The events, each with its line as its time modulo 50: users are there from early to late."""
    path = tmp_path / "timed.txt"
    lines = data.read_text().splitlines()
    path.write_text("".join(f"{line} {i * 17 % 50}\n" for i, line in enumerate(lines)))
    return path


def moments(run="run"):
    with open(f"{run}/run.json") as file:
        return json.load(file)["data"]["split_by_time"]


def test_a_run_is_split_at_moments_which_it_records_and_prints(timed, capsys):
    assert train(timed, "--split", "time", "--valid-share", "0.2", "--test-share", "0.2") == 0

    counts = SASRecDataSet(timed).split_by_time(valid_share=0.2, test_share=0.2)
    assert moments() == [counts.valid_from, counts.test_from]
    assert f"split by time: {counts}" in capsys.readouterr().out


def test_an_evaluation_measures_the_same_users_again_even_of_a_file_that_has_moved(
    timed, tmp_path, capsys
):
    train(timed, "--split", "time", "--validation", "sampled")
    trained = capsys.readouterr().out
    timed.rename(tmp_path / "moved.txt")

    assert main(["evaluate", "run", "--data", str(tmp_path / "moved.txt"), "--sampled"]) == 0

    table = capsys.readouterr().out.splitlines()
    assert set(table) <= set(trained.splitlines())


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        ("all", "each after the events before the part, ranked among"),
        ("successive", "each after all events before it, ranked among"),
    ],
)
def test_every_event_of_a_part_may_be_a_target(timed, tmp_path, capsys, targets, what):
    train(timed, "--split", "time", "--valid-share", "0.2", "--test-share", "0.2")
    capsys.readouterr()
    more = ["--targets", targets, "--ranks", "ranks.csv", "--baselines"]

    assert main(["evaluate", "run", *more]) == 0

    head = capsys.readouterr().out.splitlines()[0]
    data = SASRecDataSet(timed)
    data.split_by_time(*moments())
    found = evaluate_ranks(SASREC.from_pretrained("run"), data, targets=targets)
    assert head.startswith(
        f"{len(found.users)} test events of {len(set(found.users))} users, {what}"
    )
    with open("ranks.csv") as file:
        rows = [[int(cell) for cell in row] for row in [*csv.reader(file)][1:]]
    assert rows == np.stack([found.users, found.items, found.ranks[:, 0] + 1], 1).tolist()
    assert len(rows) > len({user for user, *_ in rows})
    assert main(["compare", "run", "run", "--targets", targets]) == 0
    assert "+0.0000 [+0.0000, +0.0000]" in capsys.readouterr().out


def test_a_run_that_was_split_by_time_is_not_another_one(timed, tmp_path):
    train(timed, out="last")
    train(timed, "--split", "time", out="time")

    with open("last/run.json") as file:
        assert "split_by_time" not in json.load(file)["data"]
    assert moments("time")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--valid-share", "0.2"), "--valid-share is for --split time"),
        (("--split", "time", "--valid-share", "0.9", "--test-share", "0.9"), "must be below 1"),
        (("--split", "time", "--test-share", "1"), "argument --test-share"),
        (("--split", "random"), "argument --split"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(timed, capsys, options, message):
    with pytest.raises(SystemExit):
        raise SystemExit(train(timed, *options))

    assert message in capsys.readouterr().err


def test_data_without_times_are_named(data, capsys):
    assert train(data, "--split", "time") != 0
    assert f"{data}: a split by time needs times" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [[1], [1, 2.5], "12", [1, True], None])
def test_damaged_moments_are_named(timed, capsys, damage):
    train(timed, "--split", "time")
    with open("run/run.json") as file:
        record = json.load(file)
    del record["digest"]
    record["data"]["split_by_time"] = damage
    with open("run/run.json", "w") as file:
        json.dump(record, file)

    assert main(["evaluate", "run"]) != 0
    assert "run.json is damaged: it names no data" in capsys.readouterr().err
