"""What docs/migrating.md says of the differences from recommenders is what bench/differences.py measures."""

import importlib
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
differences = importlib.import_module("differences")


@pytest.fixture(scope="module")
def rows():
    """The rows of a quick run: what is measured -> (recommenders, here)."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text, **_: lines.extend(text.splitlines()))
        differences.main(["--quick"])
    cells = [line.strip("| ").split(" | ") for line in lines[2:]]
    return {what: pair for what, *pair in cells}


def numbers_of(rows, *words):
    ((there, here),) = (pair for what, pair in rows.items() if all(word in what for word in words))
    return [[float(x) for x in re.findall(r"[\d.]+", cell)] for cell in (there, here)]


@pytest.mark.usefixtures("_one_thread")
def test_sums_of_exactly_zero_are_common_in_a_fresh_model_and_change_its_scores(rows):
    shares, _ = numbers_of(rows, "do not attend", "fresh")
    ((error,), _) = numbers_of(rows, "error", "fresh")

    assert all(1 < share < 30 for share in shares)
    assert error > 1


def test_they_are_rare_after_some_training(rows):
    shares, _ = numbers_of(rows, "do not attend", "after")

    assert all(share < 1 for share in shares)


def test_a_sigmoid_of_1_has_no_gradient(rows):
    assert numbers_of(rows, "logit 20") == [[55.3, 0.0], [20.0, 1.0]]


def test_constant_scores_are_the_best_or_the_worst(rows):
    assert numbers_of(rows, "constant") == [[1.0], [0.0]]
