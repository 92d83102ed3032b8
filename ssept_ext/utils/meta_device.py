"""Modules that are made only to be given the parameters of a file or of another module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = ("normal_", "uniform_")


@contextmanager
def without_parameters() -> Iterator[None]:
    """Put new parameters on the meta device: they have shapes, and neither memory nor values.

    `load_state_dict` with `assign=True` then sets them. torch would import its compiler, and SymPy with it, to draw
    normal numbers on that device, which takes longer than to load most models.

    Examples
    --------
    >>> with without_parameters():
    ...     layer = torch.nn.Embedding(10**9, 10**6)
    >>> layer.weight.device
    device(type='meta')
    """
    with torch.device("meta"), _WithoutDraws():
        yield


class _WithoutDraws(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", None) in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
