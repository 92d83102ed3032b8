"""bench/search.py: a study grows from call to call, ends hopeless trials, and never looks at the test set."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssept_ext import SSEPT, SASRecDataSet
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training.recipe import Recipe

optuna = pytest.importorskip("optuna")  # a machine with a GPU may lack it
pytestmark = pytest.mark.usefixtures("_one_thread")

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
search, reproduce = importlib.import_module("search"), importlib.import_module("reproduce")

SMALL = ["--set", "embedding_dim=8", "--set", "user_embedding_dim=4", "--set", "batch_size=10"]
TINY = {"num_epochs": 4, "val_epoch": 1, "batch_size": 10, "embedding_dim": 4, "seq_max_len": 5}


@pytest.fixture
def quick(tmp_path):
    """Search for a learning rate and a rate of dropout, with 2 more trials."""
    over = ["--over", "learning_rate", "dropout_rate"]
    arguments = ["--quick", "--trials", "2", "--out", str(tmp_path), *over, *SMALL]
    return lambda: search.main(arguments)


@pytest.fixture(autouse=True)
def _no_test_set(monkeypatch):
    histories = SASRecDataSet.histories

    def without_test(self, part, users=None, **options):
        assert part != "test"
        return histories(self, part, users, **options)

    monkeypatch.setattr(SASRecDataSet, "histories", without_test)


def test_a_second_call_adds_trials_to_the_study(quick, capsys):
    quick()
    quick()

    assert "4 of 4 trials ran to their end" in capsys.readouterr().out


def test_the_command_of_the_best_trial_makes_its_settings(quick, capsys):
    quick()

    *_, table, _, command = capsys.readouterr().out.splitlines()
    options = reproduce.make_parser().parse_args(command.split()[2:])
    settings = reproduce.parse_changes(options.set, SSEPT)
    assert settings["embedding_dim"] == 8
    assert 5e-4 <= settings["learning_rate"] <= 8e-3
    assert settings["validation"] == "full"
    assert "| 0." in table


def test_a_trial_that_is_worse_than_others_ends_early():
    epochs = []
    trial = SimpleNamespace(
        report=lambda _, epoch: epochs.append(epoch),
        should_prune=lambda: len(epochs) == 2,
        set_user_attr=lambda *_: None,
    )
    recipe = Recipe.from_options(SSEPT, {**TINY, "validation": "full"})

    with pytest.raises(optuna.TrialPruned):
        search.validated(recipe, synthetic(num_users=40), 0, trial)

    assert epochs == [1, 2]


def test_times_are_searched_over_only_where_there_are_any():
    options = search.make_parser().parse_args([])
    without = synthetic(num_users=20)
    timed = without.histories("all")
    timed = SASRecDataSet(histories=timed._replace(times=timed.items))

    assert "time_bias" not in search.space_of(options, without)
    assert "time_bias" in search.space_of(options, timed)
