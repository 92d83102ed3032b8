"""Argument checks that several packages share."""

from __future__ import annotations

import operator
import re
from typing import Any

MAX_INT = 2**63 - 1
"""The largest integer that tensors, arrays and the compiled extension take."""


def check_at_least(name: str, value: Any, least: int, most: float = MAX_INT) -> int:
    """Check that `value` is an integer of at least `least` and at most `most`, and return it as an int.

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
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {shown(value)}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {shown(value)}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Check that `value` is True or False, also NumPy's, and return it as a bool.

    Raises
    ------
    ValueError
        If it is not; names the argument and the value.

    Examples
    --------
    >>> import numpy as np
    >>> check_bool("hold_out", np.True_)
    True
    """
    if isinstance(value, bool):
        return value
    import numpy as np  # only here, because `ssept --help` does not wait for it

    if not isinstance(value, np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of some strings.

    Raises
    ------
    ValueError
        If it is not; names the argument, the choices and the value.

    Examples
    --------
    >>> check_one_of("split", "valid", ("valid", "test"))
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {shown(value)}")


def shown(value: Any, most: int = 200) -> str:
    """Return the value's `repr` for a message, cut after `most` characters.

    Examples
    --------
    >>> shown("two"), shown(10**5000)
    ("'two'", 'int of too many digits')
    """
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"{type(value).__name__} of too many digits"
    return text if len(text) <= most else f"{text[:most]}…"


def parsed_integer(text: str) -> int | str:
    """Return the integer that a text of decimal digits says; any other text unchanged, for a check to refuse.

    `int` would also take digits of other scripts, spaces and underscores.

    Examples
    --------
    >>> parsed_integer("-12"), parsed_integer("1_0")
    (-12, '1_0')
    """
    return int(text) if re.fullmatch("[+-]?[0-9]{1,4000}", text) else text
