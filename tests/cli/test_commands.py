"""The commands plot and info; and the help of all."""

import argparse
from dataclasses import asdict

import pytest
from support.command_line import train

from ssept_ext import build_info
from ssept_ext.cli import app as cli

pytestmark = pytest.mark.usefixtures("_one_thread")


def test_plot_draws_runs_in_one_picture(run, data, tmp_path, capsys):
    assert train(data, "--seed", "1", out="other") == 0
    capsys.readouterr()

    assert cli.main(["plot", run, "other", "--out", "both.png", "--over", "seconds"]) == 0

    assert capsys.readouterr().out == "both.png\n"
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


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
        *(
            "compare",
            "evaluate",
            "export",
            "info",
            "plot",
            "predict",
            "prepare",
            "resume",
            "serve",
            "train",
            "update",
        ),
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
                assert help.count("(default: ") <= 1
                assert "None" not in help
