"""Argument checks that several packages share."""

from __future__ import annotations

import operator
from typing import Any


def check_at_least(name: str, value: Any, limit: int) -> int:
    """Check that `value` is an integer of at least `limit`, and return it as an int.

    Integers of NumPy and torch are accepted; booleans are not.

    Raises
    ------
    ValueError
        If it is not; names the argument, the limit and the value.

    Examples
    --------
    >>> check_at_least("k", 3, 1)
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = limit - 1
    if isinstance(value, bool) or number < limit:
        raise ValueError(f"{name} must be an integer of at least {limit}, got {value!r}")
    return number


def shown(value: object) -> str:
    """Return `repr(value)`, cut after 200 characters: an error must not print megabytes."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
