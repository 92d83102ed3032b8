"""bench/beside_replay.py: both models get the same events. RePlay is not needed."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
beside_replay = importlib.import_module("beside_replay")


def test_histories_are_padded_on_the_left_and_keep_their_newest_items():
    padded = beside_replay.padded_on_the_left(np.array([5, 6, 7, 8, 9]), np.array([0, 1, 5]), 3)
    assert padded.tolist() == [[0, 0, 5], [7, 8, 9]]


def test_a_peer_trains_and_answers_for_all_users(monkeypatch, capsys):
    asked = []

    class Peer:
        def step(self, seq, pos):
            real = seq[:, :-1] > 0
            assert torch.equal(pos[:, :-1][real], seq[:, 1:][real])
            return lambda: None

        def best(self, histories, k):
            asked.append(histories)

    monkeypatch.setitem(sys.modules, "replay_model", SimpleNamespace(Replay=lambda *sizes: Peer()))

    beside_replay.main(["--quick"])

    assert {len(x) for x in asked} == {1, 40}  # of histories one by one, and of all users
    assert capsys.readouterr().out.count("  RePlay  ") == 3


def test_without_replay_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "replay_model", None)
    with pytest.raises(SystemExit, match=r"replay-rec\[torch\]"):
        beside_replay.main(["--quick"])
