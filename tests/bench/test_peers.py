"""bench/peers.py: all models see the same events and are asked and ranked the same. RecTools is not needed."""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssept_ext import SASRecDataSet
from ssept_ext.data.synthetic import synthetic

pytestmark = pytest.mark.usefixtures("_one_thread")

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
peers, questions = importlib.import_module("peers"), importlib.import_module("questions")


def by_hand(_, best, targets):
    """NDCG@10 and HR@10 of lists of best items."""
    places = [
        list(row).index(x) if x in row else None for row, x in zip(best, targets, strict=True)
    ]
    gains = [0 if place is None else 1 / np.log2(place + 2) for place in places]
    return np.mean(gains), np.mean([place is not None for place in places])


class Stub:
    """Knows the item to find of as many users as its parameter says, after 10, 20, ... seconds of training."""

    SHARES = (0.25, 0.75, 0.5, 1.0)

    def __init__(self, train, num_items):
        self.given, self.num_items, self.asked = train, num_items, []
        self.module = nn.Linear(1, 1, bias=False)

    def train(self, seed, validate):
        for epoch, share in enumerate(self.SHARES, 1):
            nn.init.constant_(self.module.weight, share)
            if validate(epoch, questions.Stopwatch(wall=20.0 * epoch, cpu=10.0 * epoch)):
                return

    def scores(self, asked):
        self.asked.append(asked)
        rows = np.arange(len(asked.targets))
        scores = np.zeros((len(rows), self.num_items + 1))
        scores[:, 0] = -np.inf
        scores[rows, asked.targets] = np.where(rows < self.module.weight.item() * len(rows), 1, -1)
        return scores


@pytest.fixture
def stubs(monkeypatch):
    """The peers that were made, all stubs."""
    made = []

    def make(name, train, num_items, val_epoch, quick):
        made.append(Stub(train, num_items))
        return made[-1]

    stub = SimpleNamespace(make=make, ndcg_and_hr=by_hand)
    monkeypatch.setitem(sys.modules, "rectools_models", stub)
    return made


@pytest.fixture
def quick(tmp_path, stubs, capsys):
    """Compare on synthetic data with times; returns what was printed."""

    def run(*options):
        peers.main(["--quick", "--clock", "cpu", "--out", str(tmp_path), *options])
        return capsys.readouterr().out

    return run


@pytest.fixture
def data():
    return peers.load(peers.make_parser().parse_args(["--quick"]))


def asked_of(inputs, targets):
    histories = SASRecDataSet(histories=inputs, hold_out=False).histories("train")
    return questions.Questions(histories, np.array(targets), None)


def test_a_peer_is_given_no_event_to_find(quick, stubs, data):
    quick("--models", "rectools-sasrec")

    given, whole = stubs[0].given, data.histories("all")
    for user, events in data.User.items():
        of_user = whole.of([user])
        assert given.of([user]).items.tolist() == events[:-2]
        assert given.of([user]).times.tolist() == of_user.times[:-2].tolist()


def test_models_are_asked_for_the_validation_event_and_in_the_end_for_the_test_event(
    quick, stubs, data
):
    quick("--models", "rectools-hstu", "--seconds", "20")

    *validations, test = stubs[0].asked
    assert len(validations) == 2
    for asked, num_held_out in ((validations[0], 2), (validations[1], 2), (test, 1)):
        for row, events in enumerate(data.User.values()):
            start, end = asked.inputs.offsets[row : row + 2]
            assert asked.inputs.items[start:end].tolist() == events[:-num_held_out]
            assert asked.targets[row] == events[-num_held_out]
    assert test.at.tolist() == data.histories("test").times.tolist()


def test_the_best_validation_is_tested_and_training_ends_after_the_seconds(quick, tmp_path):
    out = quick("--models", "rectools-sasrec", "--seconds", "30", "--seeds", "0", "1")

    table, curves = out.split("\n\n")
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert cells[:2] == ["rectools-sasrec", "0 1"]
    after = ["–", "–", "–", "0.2500 ± 0.0000", "0.7500 ± 0.0000"]  # of 30 seconds, 1/16 to all
    assert cells[2:7] == after
    assert cells[7:10] == ["2", "3", "30"]
    assert cells[10:] == ["0.7500 ± 0.0000"] * 2
    assert curves.splitlines()[1] == "rectools-sasrec,0,1,20.0,10.0,0.25000,0.25000"
    assert len(curves.splitlines()) == 1 + 2 * 3
    assert (tmp_path / "table.md").read_text() == table + "\n"
    assert (tmp_path / "curves.csv").read_text() == curves


def test_ours_train_and_are_measured_beside_a_peer(quick, tmp_path):
    cores = os.sched_getaffinity(0)

    out = quick("--models", *peers.OURS, "rectools-hstu", "--val-epoch", "3")

    curves = [line.split(",") for line in out.split("\n\n")[1].splitlines()[1:]]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    of_ours = [(model, epoch) for model, _, epoch, *_ in curves if model in peers.OURS]
    assert of_ours == [(name, epoch) for name in peers.OURS for epoch in ("3", "4")]
    seconds = [float(wall) for model, _, _, wall, *_ in curves if model == "sse-pt"]
    assert 0 <= seconds[0] <= seconds[1]
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize("name", ["sasrec", "sse-pt", "sse-pt-time"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_common_ranking_agrees_with_evaluate_full(name, split, monkeypatch):
    few = synthetic(num_users=40, num_clusters=3, num_tastes=3, items_per_taste=4).histories("all")
    data = SASRecDataSet(histories=few._replace(times=3600 * np.arange(len(few.items))))
    monkeypatch.setattr(questions, "_SCORES_AT_A_TIME", 7 * data.itemnum)  # in several parts
    model = peers.ours(name, data, peers.make_parser().parse_args(["--quick"]))
    model.module = model._recipe.make_model(data.itemnum, data.usernum)
    torch.manual_seed(0)
    for parameter in model.module.parameters():
        nn.init.normal_(parameter, std=0.3)

    measured = questions.measure(model, questions.Questions.of(data, split), data.itemnum, by_hand)

    full = model.module.evaluate_full(data, ks=[10], split=split)
    assert 0 < full.ndcg[10] < 1
    assert measured == pytest.approx([full.ndcg[10], full.hr[10]], abs=1e-12)


def test_items_of_the_input_are_left_out_except_the_one_to_find():
    scores = np.array([[-np.inf, 5, 4, 3, 2, 1]])

    ranks, best = questions.ranked(scores.copy(), asked_of({1: [1, 2, 4]}, [4]))

    assert ranks.tolist() == [1]
    assert best.tolist() == [[3, 4, 5, 0, 0, 0]]


def test_items_with_the_score_of_the_one_to_find_rank_above_it():
    scores = np.array([[-np.inf, 1, 1, 1, 1, 0]])

    ranks, best = questions.ranked(scores, asked_of({1: [1]}, [2]))

    assert ranks.tolist() == [2]
    assert best[0, 2:4].tolist() == [2, 5]


def test_an_item_that_a_model_does_not_know_is_not_found():
    scores = np.array([[-np.inf, 1, 1, -np.inf]])

    ranks, best = questions.ranked(scores, asked_of({1: [1]}, [3]))

    assert ranks.tolist() == [4]
    assert best.tolist() == [[2, 0, 0, 0]]


def test_other_figures_of_the_reference_are_an_error(data):
    model = Stub(data.histories("train"), data.itemnum)

    with pytest.raises(ValueError, match=r"but rectools\.metrics has \(0\.5, 0\.5\)"):
        questions.measure(
            model, questions.Questions.of(data, "valid"), data.itemnum, lambda *_: (0.5, 0.5)
        )


def test_a_score_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="scores must be numbers, got nan"):
        questions.ranked(np.array([[-np.inf, np.nan]]), asked_of({1: [1]}, [1]))


def test_without_rectools_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rectools_models", None)

    with pytest.raises(SystemExit, match=r'^peers: .*pip install "ssept_ext\[peers\]"$'):
        peers.main(["--quick"])
