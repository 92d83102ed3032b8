"""What a training shows on stderr."""

import io
import re
import sys

import pytest
from support.ring import Stub, make_ssept, train

from ssept_ext.training.display import Display

pytestmark = pytest.mark.usefixtures("_one_thread")


def test_the_progress_bar_shows_loss_speed_and_validation(dataset, capfd):
    history = train(Stub(), dataset, num_epochs=1, val_epoch=1, verbose=True)

    error = capfd.readouterr().err
    assert "epoch 1/1" in error
    assert f"loss {history['loss'][0]:.4f}" in error
    assert "samples/s" in error
    assert f"valid NDCG@10 {history['val_ndcg'][0]:.4f}, HR@10 {history['val_hr'][0]:.4f}" in error


def test_a_validation_by_full_ranking_says_so(dataset, capfd):
    train(make_ssept(), dataset, num_epochs=1, val_epoch=1, validation="full", verbose=True)

    assert re.search(r"valid NDCG@10 [\d.]+, HR@10 [\d.]+ of all items", capfd.readouterr().err)


def test_verbose_false_is_silent(dataset, capfd):
    train(Stub(), dataset, num_epochs=3, val_epoch=1, verbose=False)

    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_every_tenth_epoch_and_the_last_has_a_line(dataset, capfd):
    history = train(Stub(), dataset, num_epochs=23, val_epoch=8, verbose=True)

    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 10/23", "epoch 20/23", "epoch 23/23"]
    for line, epoch, validation in zip(lines, (10, 20, 23), (0, 1, 1), strict=True):
        assert f": loss {history['loss'][epoch - 1]:.4f}, " in line
        assert line.endswith(  # of the newest validation
            f"valid NDCG@10 {history['val_ndcg'][validation]:.4f}, "
            f"HR@10 {history['val_hr'][validation]:.4f}"
        )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def use_terminal(monkeypatch):
    """Let stderr be a terminal; what it shows is the result's `getvalue()`."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_on_a_terminal_every_epoch_has_a_bar_and_no_line(dataset, monkeypatch):
    terminal = use_terminal(monkeypatch)
    history = train(Stub(), dataset, num_epochs=12, val_epoch=12, verbose=True)

    shown = terminal.getvalue()
    for epoch, loss in enumerate(history["loss"], 1):
        assert f"epoch {epoch}/12: 100%" in shown
        assert f"loss {loss:.4f}" in shown
    assert f"valid NDCG@10 {history['val_ndcg'][0]:.4f}" in shown
    assert "epoch 12/12: loss" not in shown


def test_the_bar_of_an_epoch_that_is_resumed_begins_where_it_was(monkeypatch):
    terminal = use_terminal(monkeypatch)
    display = Display(num_epochs=3, num_steps=4, enabled=True)

    with display.epoch(2, num_done=1):
        assert "1/4" in terminal.getvalue()
        display.update(3, loss=0.5, samples_per_second=10)

    assert "3/4" in terminal.getvalue()
    assert "4/4" not in terminal.getvalue()


def test_verbose_false_is_silent_on_a_terminal_too(dataset, monkeypatch):
    terminal = use_terminal(monkeypatch)
    train(Stub(), dataset, num_epochs=10, val_epoch=5, verbose=False)

    assert terminal.getvalue() == ""
