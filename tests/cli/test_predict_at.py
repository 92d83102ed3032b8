"""`ssept predict --at`: the time for which a model with a time bias recommends."""

from datetime import datetime

import pytest
from support.command_line import main, train

from ssept_ext.cli import predict


@pytest.fixture
def timed_run(data, tmp_path, capsys):
    path = tmp_path / "timed.txt"
    lines = data.read_text().splitlines()
    path.write_text("".join(f"{line} {i}\n" for i, line in enumerate(lines)))
    assert train(path, "--time-bias") == 0
    capsys.readouterr()
    return "run"


@pytest.mark.parametrize(
    ("flags", "at"),
    [
        ((), None),
        (("--at", "100000"), 100000),
        (("--at", "2026-03-01T12:00"), datetime(2026, 3, 1, 12)),
    ],
)
def test_the_time_reaches_the_model(timed_run, monkeypatch, capsys, flags, at):
    asked, recommend = [], predict.recommend_by_index

    def noting(*arguments, **options):
        asked.append(options["at"])
        return recommend(*arguments, **options)

    monkeypatch.setattr(predict, "recommend_by_index", noting)

    assert main(["predict", timed_run, "--users", "2", "-k", "3", *flags]) == 0

    assert asked == [at]
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("time", "message"),
    [("soon", "--at: must be an integer, or a date such as"), ("0", "at must not be before")],
)
def test_a_time_that_cannot_be_is_one_line(timed_run, capsys, time, message):
    with pytest.raises(SystemExit):
        raise SystemExit(main(["predict", timed_run, "--users", "2", "--at", time]))

    assert message in capsys.readouterr().err


def test_a_model_without_a_time_bias_takes_none(run, capsys):
    assert main(["predict", run, "--users", "2", "--at", "100"]) != 0
    assert "at must be None for a model without time_bias" in capsys.readouterr().err
