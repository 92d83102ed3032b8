"""bench/ablation.py: rows are means over seeds of runs that differ in one thing, and are not run twice."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("_one_thread")

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
ablation, reproduce = importlib.import_module("ablation"), importlib.import_module("reproduce")

NAMES = ["pre-ln blocks", "without user vectors"]


@pytest.fixture
def quick(tmp_path):
    arguments = ["--quick", "--seeds", "2", "--out", str(tmp_path), "--only", *NAMES]
    arguments += ["--set", "num_epochs=2"]
    return lambda: ablation.main(arguments)


def settings_of(variant, tmp_path):
    options = ablation.make_parser().parse_args(["--out", str(tmp_path)])
    chosen = reproduce.make_parser().parse_args(ablation.arguments_of(variant, 0, options))
    changes = reproduce.parse_changes(chosen.set, reproduce.kind_of(chosen.preset))
    return reproduce.kind_of(chosen.preset), reproduce.PRESETS[chosen.preset] | changes


def test_rows_are_means_over_seeds(quick, capsys, tmp_path):
    quick()

    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == ["", "---", *NAMES]
    results = [
        json.loads((tmp_path / "pre-ln-blocks" / "synthetic" / f"seed-{i}/result.json").read_text())
        for i in range(2)
    ]
    mean = sum(result["best_valid_ndcg"] for result in results) / 2
    assert f"| pre-ln blocks | {mean:.4f} ± " in lines[2]


def test_what_has_been_run_is_not_run_again(quick, capsys, monkeypatch):
    quick()
    first = capsys.readouterr().out.splitlines()[-4:]
    monkeypatch.setattr(reproduce.Recipe, "make_model", None)

    quick()

    assert capsys.readouterr().out.splitlines() == first


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_every_variant_makes_a_model_that_differs_in_what_it_says_alone(variant, tmp_path):
    kind, settings = settings_of(variant, tmp_path)
    base_kind, base = settings_of("SSE-PT, sampled softmax", tmp_path)

    model = reproduce.Recipe.from_options(kind, settings).make_model(item_num=9, user_num=9)

    assert model.config.hidden_size == 80
    if variant != "without user vectors":
        differing = {name for name in settings if settings[name] != base.get(name)}
        named = {change.partition("=")[0] for change in ablation.VARIANTS[variant]}
        assert kind is base_kind
        assert differing == named
