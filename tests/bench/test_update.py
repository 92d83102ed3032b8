"""bench/update.py: three models, of which the updated one has seen the last days."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("_one_thread")

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
bench = importlib.import_module("update")


@pytest.fixture
def events(tmp_path):
    """20 users who have an event a day for 12 days; the last five arrive on day 8."""
    rng = np.random.default_rng(0)
    lines = [
        f"u{user},i{rng.integers(150)},{86_400 * day + user}\n"
        for user in range(20)
        for day in range(8 if user >= 15 else 0, 12)
    ]
    path = tmp_path / "events.csv"
    path.write_text("".join(["user,item,timestamp\n", *lines]))
    return path


def test_the_table_has_all_models_and_what_they_took(events, capsys):
    bench.main(["--quick", "--data", str(events), "--days", "3", "--update", "new_items=mean"])

    title, _, before, update, scratch = capsys.readouterr().out.splitlines()
    assert title == "| model | NDCG@10 | with new events | others | CPU time |"
    assert re.fullmatch(r"\| before \| 0\.\d{4} \| – \| – \| [\d.]+ \|", before)
    assert re.fullmatch(r"\| update \| (0\.\d{4} \| ){2}– \| [\d.]+ \|", update)
    assert re.fullmatch(r"\| from scratch \| (0\.\d{4} \| ){2}– \| 1\.000 \|", scratch)


def test_an_option_of_update_that_there_is_not_is_named(events):
    with pytest.raises(TypeError, match='has no option "colour"'):
        bench.main(["--quick", "--data", str(events), "--days", "3", "--update", "colour=red"])
