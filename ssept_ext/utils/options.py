"""Options as fields of dataclasses.

`option` declares a field with its default, help text and range in one place. Constructors check values with
`check_options`; the flags of the command line (`ssept_ext.cli.options`) and the tables of the documentation are
generated from the same fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional, TypeVar, get_args, get_origin, get_type_hints

from ssept_ext.utils.checks import MAX_INT, check_at_least, check_bool, check_one_of, shown

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    Examples
    --------
    >>> 1.0 in Range(0, 1, open_high=True)
    False
    >>> str(Range(0, 1, open_high=True))
    'in [0, 1)'
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return "finite and positive" if self.open_low else f"finite and at least {self.low:g}"
        left, right = "(["[not self.open_low], ")]"[not self.open_high]
        return f"in {left}{self.low}, {self.high}{right}"


PROBABILITY = Range(0, 1)
PROPER_FRACTION = Range(0, 1, open_high=True)
POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)


def option(
    default: T,
    help: str,
    within: Range | None = None,
    *,
    flag: str | None = None,
    none: str | None = None,
) -> T:
    """Declare a field of a dataclass of options.

    Parameters
    ----------
    default
        Default value of the field.
    help
        One line that starts in lower case and ends without a full stop.
    within
        Range of a number; None leaves the check to the dataclass.
    flag
        Name on the command line, without the leading dashes; by default the field's name with dashes.
    none
        Word on the command line that stands for None, in a field of a number.
    """
    metadata = {"help": help, "within": within, "flag": flag, "none": none}
    made: T = field(default=default, metadata=metadata)
    return made


def field_types(options: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by their names, where Python 3.10 takes an `InitVar` for no type."""
    return get_type_hints(options, localns={"InitVar": Optional})


def check_options(options: Any) -> None:
    """Check the fields that `option` declared, and convert numbers of other types to Python's.

    Raises
    ------
    ValueError
        If a value is of another type, or outside its range or choices; names field, limit and value.
    """
    hints = field_types(type(options))
    for declared in fields(options):
        if "help" not in declared.metadata:
            continue
        value = getattr(options, declared.name)
        kind = without_none(hints[declared.name])
        if value is None and kind is not hints[declared.name]:
            continue
        checked = checked_value(declared, kind, value)
        if checked is not value:
            object.__setattr__(options, declared.name, checked)  # the dataclass is frozen


def checked_value(declared: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """Check one value of a field that `option` declared with the type `kind`, and return it; see `check_options`."""
    name, within = declared.name, declared.metadata["within"]
    if get_origin(kind) is Literal:
        check_one_of(name, value, get_args(kind))
    elif kind is bool:
        return check_bool(name, value)
    elif within is not None and get_origin(kind) is tuple:
        length = len(get_args(kind))
        numbers = tuple(map(_number, value)) if isinstance(value, Iterable) else ()
        if len(numbers) != length or not all(x is not None and x in within for x in numbers):
            raise ValueError(f"{name} must be {length} numbers {within}, got {shown(value)}")
        return numbers
    elif within is not None:
        return check_number(name, value, kind, within)
    return value


def check_number(name: str, value: Any, kind: type, within: Range) -> Any:
    """Check that `value` is a number within a range, for the kind int an integer, and return it."""
    if kind is int:
        return check_at_least(name, value, int(within.low), min(within.high, MAX_INT))
    number = _number(value)
    if number is None or number not in within:
        raise ValueError(f"{name} must be {within}, got {shown(value, 500)}")
    return number


def without_none(kind: Any) -> Any:
    """Return X for `X | None`, and any other type unchanged."""
    given = [x for x in get_args(kind) if x is not type(None)]
    is_optional = len(given) == 1 and type(None) in get_args(kind)
    return given[0] if is_optional else kind


def _number(value: Any) -> float | None:
    """Return a number as a float of Python, and None for anything else."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
