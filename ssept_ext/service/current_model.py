"""The model that a folder holds, loaded again whenever the folder changes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from ssept_ext._extension import Backend
from ssept_ext.models import SASREC
from ssept_ext.network.compressed import ItemDtype
from ssept_ext.network.folding import folded

_MAX_ERROR = 500
"""Characters of a reason."""
Stamp = frozenset[tuple[str, int, int, int]]


@dataclass(frozen=True)
class Loaded:
    """A model, and when it was loaded."""

    model: SASREC
    at: datetime


class CurrentModel:
    """The model of a checkpoint's folder. The last one that could be loaded stays if the folder is damaged later."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        backend: Backend,
        device: torch.device,
        table: ItemDtype | None = None,
    ) -> None:
        """Load the model, and compress its items to `table`; an OSError or ValueError says why that cannot be done."""
        self._folder, self._backend, self._device = Path(folder), backend, device
        self._table = table
        self.error: str | None = None
        """Why the folder as it is now cannot be loaded; None if the model is the folder's."""
        self.failures = 0
        self._stamp = self._look()
        self.loaded = self._load()

    def refresh(self) -> bool:
        """Load the folder again if its files have changed; return whether the model is another one now."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.loaded = self._load()
        # Whatever is wrong with the folder, the model that is there goes on answering.
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"[:_MAX_ERROR]
            self.failures += 1
            return False
        self.error = None
        return True

    def _load(self) -> Loaded:
        model = SASREC.from_pretrained(self._folder, backend=self._backend, device=self._device)
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"{self._folder} holds a model that has diverged, see {name}")
        model = folded(model)
        if self._table is not None:
            model = model.compress(self._table)
        mean = model.mean_user()  # of millions of users, it takes longer than an answer
        model.mean_user = lambda: mean  # type: ignore[method-assign]
        return Loaded(model.eval(), datetime.now(timezone.utc))

    def _look(self) -> Stamp:
        """What tells that a file was written or replaced."""
        try:
            with os.scandir(self._folder) as entries:
                stats = [
                    (entry.name, entry.stat())
                    for entry in entries
                    if entry.name.endswith((".json", ".safetensors"))
                ]
        except OSError:
            return frozenset()
        return frozenset((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats)
