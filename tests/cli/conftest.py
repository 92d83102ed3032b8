import pytest
from support.command_line import train
from support.factories import write_events


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
