"""SIGINT and SIGTERM as requests to stop training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ssept_ext import distributed


class TrainingInterrupted(SystemExit):
    """A signal has stopped training, after the state was saved.

    If it is not caught, the process exits with `code`.

    Attributes
    ----------
    code
        128 + the number of the signal, as shells report it: 130 for SIGINT and 143 for SIGTERM.
    """

    code: int

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class StopRequest:
    """True once SIGINT (Ctrl-C) or SIGTERM has asked the training to stop, in any of its processes.

    As a context manager, it records these signals instead of letting them act. A SIGINT after another signal raises
    KeyboardInterrupt, for users who do not want to wait; more SIGTERMs are only recorded, because some supervisors
    send several. Signals that the process ignores stay ignored. Outside the main thread, where Python cannot install
    handlers, no signal is recorded.

    Parameters
    ----------
    listen
        If False, signals act as usual, and this is never true.
    """

    def __init__(self, listen: bool) -> None:
        self._listen = listen
        self.noted: list[signal.Signals] = []
        """Signals that this process has received."""
        self._agreed: Sequence[signal.Signals] = self.noted if distributed.size() == 1 else []
        self._replaced: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        """Whether to stop: at once in a single process; with several, once they have exchanged their signals."""
        return bool(self._agreed)

    @property
    def first(self) -> signal.Signals:
        """The first signal that asked to stop."""
        return self._agreed[0]

    def share(self, noted_everywhere: Sequence[Sequence[signal.Signals]]) -> None:
        """Adopt the signals of the first process that has recorded any, so that all processes agree."""
        self._agreed = next((noted for noted in noted_everywhere if noted), self._agreed)

    def __enter__(self) -> StopRequest:
        if self._listen and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                # A handler of None was not installed by Python, and could not be restored.
                if handler not in (signal.SIG_IGN, None):
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
