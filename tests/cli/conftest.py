import numpy as np
import pytest
from support.command_line import train
from support.factories import write_events

from ssept_ext import cli


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path):
    """20 users (1..21 without 13) with 4 to 9 of 30 items."""
    return write_events(tmp_path / "events.txt", [u for u in range(1, 22) if u != 13])


@pytest.fixture
def run(data, capsys):
    """The folder of a finished run."""
    assert train(data) == 0
    capsys.readouterr()
    return "run"


@pytest.fixture
def raw_run(tmp_path, capsys):
    """A run on 15 users with string ids."""
    rng = np.random.default_rng(0)
    events = [(f"user-{u}", f"item {i}") for u in range(15) for i in rng.permutation(20)[:9]]
    lines = "".join(f'{user},"{item}",{time}\n' for time, (user, item) in enumerate(events))
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\n{lines}")
    assert cli.main(["prepare", "events.csv", "--out", "events.txt", "--min-item-events", "1"]) == 0
    assert train("events.txt") == 0
    capsys.readouterr()
    return "run"
