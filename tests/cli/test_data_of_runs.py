"""A run knows the data it was trained on, and does not take other data for it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support.command_line import before_batch, ctrl_c, rows_of, train
from support.factories import write_events

from ssept_ext import SASREC
from ssept_ext.cli import app as cli
from ssept_ext.cli.runs import alone_in
from ssept_ext.utils.files import write_json

pytestmark = pytest.mark.usefixtures("_one_thread")


def write_csv(path, order, items=20):
    """15 users with 9 of 20 items each; `order` shuffles the rows, which changes the numbers of users and items."""
    rng = np.random.default_rng(0)
    events = [
        f"user-{u},item-{i},{time}\n"
        for u in range(15)
        for time, i in enumerate(rng.permutation(items)[:9])
    ]
    shuffled = np.random.default_rng(order).permutation(events)
    path.write_text("user,item,timestamp\n" + "".join(shuffled))


def prepare(order, out, items=20):
    write_csv(out.with_suffix(".csv"), order, items)
    argv = ["prepare", str(out.with_suffix(".csv")), "--out", str(out), "--min-item-events", "1"]
    assert cli.main(argv) == 0


@pytest.fixture
def prepared(tmp_path):
    prepare(1, tmp_path / "first.txt")
    return tmp_path / "first.txt"


@pytest.mark.parametrize(
    "suffixes", [("txt", "txt"), ("safetensors", "txt"), ("txt", "safetensors")]
)
def test_data_prepared_from_shuffled_rows_are_read_by_the_model_s_own_ids(
    suffixes, tmp_path, capsys
):
    first, second = (
        f"{name}.{end}" for name, end in zip(("first", "second"), suffixes, strict=True)
    )
    prepare(1, tmp_path / first)
    prepare(2, tmp_path / second)
    assert train(tmp_path / first) == 0
    outputs = []
    for argv in (["predict", "run", "--users", "user-3"], ["evaluate", "run"]):
        for data in ([], ["--data", second]):
            capsys.readouterr()
            assert cli.main([*argv, *data]) == 0
            outputs.append(capsys.readouterr().out)

    assert outputs[0] == outputs[1]
    assert rows_of(outputs[2]) == rows_of(outputs[3])


def test_items_that_a_model_does_not_know_name_the_file_and_the_run(prepared, tmp_path, capsys):
    prepare(1, tmp_path / "larger.txt", items=25)
    assert train(prepared) == 0

    assert cli.main(["evaluate", "run", "--data", "larger.txt"]) == 2

    error = capsys.readouterr().err
    assert "error: run: " in error
    assert "larger.txt does not belong to the model: item 'item-2" in error


def test_prepared_data_without_their_raw_ids_are_known_by_their_digest(prepared, tmp_path, capsys):
    prepare(2, tmp_path / "second.txt")
    assert train(prepared) == 0
    for path in (prepared, tmp_path / "second.txt"):
        path.with_name(f"{path.name}.ids.json").unlink()
    capsys.readouterr()

    assert cli.main(["predict", "run", "--users", "user-3"]) == 0
    assert "item-" in capsys.readouterr().out
    assert cli.main(["predict", "run", "--users", "user-3", "--data", "second.txt"]) == 2
    error = capsys.readouterr().err
    assert "the model belongs to first.txt of 15 users, 135 events" in error
    assert "got second.txt of 15 users, 135 events" in error


def test_raw_ids_beside_events_that_they_were_not_written_for_are_refused(
    prepared, tmp_path, capsys
):
    prepare(2, tmp_path / "second.txt")
    (tmp_path / "second.txt").replace(prepared)

    assert train(prepared) == 2

    assert "first.txt.ids.json has the raw ids of other data" in capsys.readouterr().err


def test_a_separator_of_columns_is_for_text(tmp_path, capsys):
    prepare(1, tmp_path / "first.safetensors")

    assert cli.main(["train", "--data", "first.safetensors", "--col-sep", ","]) == 2

    assert "--col-sep is for text, which first.safetensors is not" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_data_that_were_replaced(data, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data) == 130
    write_events(data, range(1, 22))
    capsys.readouterr()

    assert cli.main(["resume", "run", "--device", "cpu"]) == 2

    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint run belongs to events.txt of 20 users" in error
    assert "got events.txt of 21 users" in error


def test_a_run_is_not_measured_on_data_that_were_replaced_unless_told_to(run, data, capsys):
    write_events(data, [u for u in range(1, 22) if u != 14])

    assert cli.main(["evaluate", run]) == 2
    assert "run belongs to events.txt of 20 users" in capsys.readouterr().err

    assert cli.main(["evaluate", run, "--data", str(data)]) == 0
    assert "note: run belongs to events.txt of 20 users" in capsys.readouterr().err


def test_runs_of_before_there_were_digests_are_read(run, data, tmp_path, capsys):
    for name in ("run.json", "config.json"):
        path = tmp_path / run / name
        record = json.loads(path.read_text())
        record.pop("trained_on", None)
        del record["digest"]
        path.write_text(json.dumps(record))
    write_events(data, range(1, 22))

    assert cli.main(["evaluate", run]) == 0
    assert SASREC.from_pretrained(run).trained_on is None


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"filename": 0, "col_sep": " "}},
        {"data": {"filename": "events.txt", "col_sep": 3}},
        {"data": {"filename": "events.txt", "col_sep": " ", "x": 1}},
        {"data": {"synthetic": {"num_users": "many"}}},
        {"data": {"synthetic": {"colour": 1}}},
        {"data": [1]},
        {"options": {"model": "ssept", "seed": "x"}},
        {"options": {"model": ["ssept"], "seed": 0}},
        {"options": {"seed": 0}},
        {"options": 3},
    ],
)
def test_wrong_values_in_a_run_file_name_it(run, tmp_path, capsys, changes):
    path = tmp_path / run / "run.json"
    record = json.loads(path.read_text())
    del record["digest"]
    write_json(path, record | changes)

    assert cli.main(["evaluate", run]) == 2
    assert "run.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv_dims", 3, "conv_dims must be two widths"),
        ("num_epochs", "x", "run.json is damaged: num_epochs"),
        ("adam_betas", None, "run.json is damaged: adam_betas"),
        ("loss", [], "run.json is damaged: loss"),
    ],
)
def test_wrong_options_in_a_run_file_name_it(
    data, tmp_path, capsys, monkeypatch, name, value, message
):
    with monkeypatch.context() as patch:
        before_batch(patch, 2, ctrl_c)
        assert train(data) == 130
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["digest"]
    write_json(path, record | {"options": record["options"] | {name: value}})

    assert cli.main(["resume", "run", "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


HOLD = """
import sys, time
from pathlib import Path
from ssept_ext.cli.runs import alone_in
with alone_in(Path("run")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_train_in_one_folder_until_the_first_has_died(data, tmp_path, capsys):
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        assert train(data) == 2
        assert "another process trains in run" in capsys.readouterr().err
        first.kill()

    assert train(data) == 0
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_run_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()

    with pytest.raises(ValueError, match="run is not empty"), alone_in(tmp_path / "run", new=True):
        pass
