"""Signals that ask a training to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ssept_ext import distributed


class TrainingInterrupted(SystemExit):
    """A signal stopped a training, whose state was saved first.

    Uncaught, it ends the process with the exit code `code`: 128 + the signal's number, as shells report it, so
    130 for SIGINT and 143 for SIGTERM.
    """

    code: int

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class StopRequest:
    """Whether SIGINT (Ctrl-C) or SIGTERM has asked this training to stop, in any of its processes.

    As a context manager, it notes these signals instead of letting them act. A SIGINT after another signal
    raises KeyboardInterrupt, for users who do not want to wait; further SIGTERMs are only noted, because some
    supervisors send several. Signals that the process ignores stay ignored. Outside the main thread, where
    Python takes no handlers, nothing is ever noted.

    Parameters
    ----------
    listen
        False lets signals act as always, and never asks to stop.
    """

    def __init__(self, listen: bool) -> None:
        self._listen = listen
        self.noted: list[signal.Signals] = []
        """Signals that this process has received."""
        self._agreed: Sequence[signal.Signals] = self.noted if distributed.size() == 1 else []
        self._replaced: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        """Whether to stop: at once in a single process; where several train, once all have heard of it."""
        return bool(self._agreed)

    @property
    def first(self) -> signal.Signals:
        """The first signal that asked to stop."""
        return self._agreed[0]

    def share(self, noted_everywhere: Sequence[Sequence[signal.Signals]]) -> None:
        """Take over what all processes have noted: the signals of the first process that has any."""
        self._agreed = next((noted for noted in noted_everywhere if noted), self._agreed)

    def __enter__(self) -> StopRequest:
        if self._listen and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: not Python's, so not restorable
                    self._replaced[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.noted:
            raise KeyboardInterrupt
        self.noted.append(signal.Signals(number))
