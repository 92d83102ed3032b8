"""Signals that ask a training to end, and what it does about them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TrainingInterrupted(SystemExit):
    """A signal ended a training, whose state was saved first.

    Where nobody catches it, it ends the process with `code`: 128 + the number of the signal, as shells
    have it. 130 for SIGINT, 143 for SIGTERM.
    """

    code: int

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def noted_signals() -> Iterator[list[signal.Signals]]:
    """Note SIGINT (Ctrl-C) and SIGTERM in a list instead of acting on them.

    A SIGINT after another signal raises KeyboardInterrupt, for who does not want to wait; more SIGTERMs
    are noted only, as some supervisors send several. Signals that the process ignores stay
    ignored. Outside the main thread, where Python takes no handlers, nothing is ever noted.
    """
    noted: list[signal.Signals] = []
    replaced: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and noted:
            raise KeyboardInterrupt
        noted.append(signal.Signals(number))

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: not Python's, nor to be restored
                    replaced[number] = handler
                    signal.signal(number, note)
        yield noted
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
