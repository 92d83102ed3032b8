"""The commands plot, predict and info; and the help of all."""

import argparse
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.command_line import train

from ssept_ext import SASREC, SSEPT, SASRecDataSet, build_info
from ssept_ext.cli import app as cli

pytestmark = pytest.mark.usefixtures("_one_thread")


def test_plot_draws_runs_in_one_picture(run, data, tmp_path, capsys):
    assert train(data, "--seed", "1", out="other") == 0
    capsys.readouterr()

    assert cli.main(["plot", run, "other", "--out", "both.png", "--over", "seconds"]) == 0

    assert capsys.readouterr().out == "both.png\n"
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


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


def test_from_a_csv_with_string_ids_to_a_table_of_them(tmp_path, capsys):
    rng = np.random.default_rng(0)
    events = [(f"user-{u}", f"item {i}") for u in range(15) for i in rng.permutation(20)[:9]]
    lines = "".join(f'{user},"{item}",{time}\n' for time, (user, item) in enumerate(events))
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\n{lines}")

    assert cli.main(["prepare", "events.csv", "--out", "events.txt", "--min-item-events", "1"]) == 0
    assert train("events.txt") == 0
    capsys.readouterr()
    assert cli.main(["predict", "run", "--users", "user-3", "user-0"]) == 0

    head, *rows = (line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines())
    assert head == ["user", "rank", "item  score"] or head[:2] == ["user", "rank"]
    expected = SSEPT.from_pretrained("run").recommend(users=["user-3", "user-0"], k=10)
    assert [(user, int(rank), rest.rsplit(maxsplit=1)[0]) for user, rank, rest in rows] == list(
        zip(expected["user"], expected["rank"], expected["item"], strict=True)
    )
    assert cli.main(["predict", "run", "--users", "3"]) == 2
    assert "user 3 has no events in the data, whose users are 15 raw ids" in capsys.readouterr().err


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


def test_info_says_what_will_run(capsys):
    assert cli.main(["info"]) == 0

    output = capsys.readouterr().out
    report = asdict(build_info())
    for op, by_device in report.pop("ops").items():
        assert all(f"{op:<20}  {d:<4}  {backend}" in output for d, backend in by_device.items())
    assert all(str(value) in output for value in report.values())


def test_every_option_has_help_with_its_default():
    parser = cli.make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert sorted(commands.choices) == [
        *("compare", "evaluate", "info", "plot", "predict", "prepare", "resume", "serve", "train"),
    ]
    for sub in commands.choices.values():
        text = " ".join(sub.format_help().split())
        for action in sub._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            assert action.help, f"{sub.prog} {action.dest}"
            help = " ".join(sub._get_formatter()._expand_help(action).split())
            assert help in text
            if action.option_strings:
                assert ("(required)" in help) or ("(default: " in help) or ("default: " in help)
                assert "None" not in help
