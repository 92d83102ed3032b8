"""Progress of a training run on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ssept_ext.training.options import Validation

EPOCHS_PER_LINE = 10


class Display:
    """Shows a progress bar per epoch on a terminal, elsewhere a line after every tenth epoch and the last.

    Parameters
    ----------
    enabled
        Whether to show anything.
    """

    def __init__(self, num_epochs: int, num_steps: int, enabled: bool) -> None:
        self._num_epochs, self._num_steps = num_epochs, num_steps
        self._shows_bar = enabled and sys.stderr.isatty()
        self._prints_lines = enabled and not self._shows_bar
        self._bar: tqdm = tqdm(disable=True)
        self._figures = self._validation = ""

    @contextmanager
    def epoch(self, epoch: int, num_done: int) -> Iterator[None]:
        """Show the progress of an epoch, numbered from 1, of which `num_done` steps are already completed."""
        with tqdm(
            total=self._num_steps,
            initial=num_done,
            desc=f"epoch {epoch}/{self._num_epochs}",
            unit="step",
            disable=not self._shows_bar,
        ) as self._bar:
            yield

    def update(self, num_done: int, loss: float, samples_per_second: float) -> None:
        """Show the number of completed steps of the epoch, and their mean loss."""
        self._figures = f"loss {loss:.4f}, {samples_per_second:,.0f} samples/s"
        self._bar.set_postfix_str(self._figures, refresh=False)
        self._bar.update(num_done - self._bar.n)

    def validated(self, ndcg: float, hr: float, validation: Validation) -> None:
        """Show the metrics of a validation."""
        among = " of all items" if validation == "full" else ""
        self._validation = f", valid NDCG@10 {ndcg:.4f}, HR@10 {hr:.4f}{among}"
        self._bar.set_postfix_str(f"{self._figures}{self._validation}")

    def epoch_is_over(self, epoch: int) -> None:
        """Print a line with the newest metrics, if one is due after this epoch."""
        due = epoch % EPOCHS_PER_LINE == 0 or epoch == self._num_epochs
        if self._prints_lines and due:
            figures = f"{self._figures}{self._validation}"
            print(f"epoch {epoch}/{self._num_epochs}: {figures}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Print a message, if the display is enabled."""
        if self._shows_bar or self._prints_lines:
            print(message, file=sys.stderr)
