"""bench/serving_peers.py: both models answer for the same users. RecTools is not needed."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
serving_peers = importlib.import_module("serving_peers")


class Peer:
    def __init__(self, events):
        self.events, self.asked = events, []

    def train(self, seed, validate):
        assert validate(1, None)

    def data_set(self, histories):
        return histories

    def recommend(self, users, data_set, k):
        assert list(data_set.users) == list(users)
        self.asked.append(list(users))


def test_a_peer_answers_the_users_that_ours_does(monkeypatch, capsys):
    made = []

    def make(name, train, *_):
        made.append(Peer(train))
        return made[0]

    monkeypatch.setitem(sys.modules, "rectools_models", SimpleNamespace(make=make))

    serving_peers.main(["--quick"])

    (peer,) = made
    everyone = list(peer.events.users)
    assert {len(users) for users in peer.asked} == {1, len(everyone)}
    assert all(users == everyone for users in peer.asked if len(users) > 1)
    out = capsys.readouterr().out
    assert all(name in out for name in ("RecTools, from a history", "time / ours", "All 40 users"))


def test_without_rectools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rectools_models", None)
    with pytest.raises(SystemExit, match=r"ssept_ext\[peers\]"):
        serving_peers.main(["--quick"])
