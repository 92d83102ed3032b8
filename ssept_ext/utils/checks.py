"""Checks of arguments that several rooms share."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_at_least(name: str, value: Any, limit: int) -> None:
    """Refuse what is no integer or is below `limit`, by a ValueError naming the argument."""
    if not isinstance(value, (int, np.integer)) or value < limit:
        raise ValueError(f"{name} must be an integer of at least {limit}, got {value!r}")
