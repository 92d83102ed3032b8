"""Options as fields of dataclasses: what values each kind of field takes, and how a wrong one is named."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pytest

from ssept_ext.utils.options import (
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    PROPER_FRACTION,
    Range,
    check_options,
    option,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    count: int = option(2, "an integer", Range(1))
    width: int = option(2, "an integer with an upper limit", Range(1, 1000))
    share: float = option(0.5, "a number in a closed interval", PROBABILITY)
    drop: float = option(0.5, "a number below 1", PROPER_FRACTION)
    rate: float = option(0.1, "a number above 0", POSITIVE)
    weight: float = option(0.0, "a number from 0 on", NOT_NEGATIVE)
    pair: tuple[float, float] = option((0.9, 0.99), "two numbers", PROPER_FRACTION)
    color: Literal["red", "blue"] = option("red", "one of two")
    joint: bool = option(False, "yes or no")
    limit: float | None = option(None, "a number, or none", POSITIVE)

    def __post_init__(self):
        check_options(self)


@pytest.mark.parametrize(
    ("name", "values", "limit"),
    [
        ("count", [0, -1, 1.5, 2.0, math.nan, True, "2", None], "an integer of at least 1"),
        ("width", [0, 1.5, None], "an integer of at least 1"),
        ("width", [1001, 10**20], "at most 1000"),
        ("count", [2**63, 10**20, np.uint64(2**63)], "at most 9223372036854775807"),
        ("share", [-0.1, 1.1, math.nan, math.inf, True, "0.5", None], r"in \[0, 1\]"),
        ("drop", [1, 1.0, -0.1, math.nan], r"in \[0, 1\)"),
        ("rate", [0, -1.0, math.nan, math.inf, 10**400, True, "1"], "finite and positive"),
        ("weight", [-0.1, math.nan, math.inf], "finite and at least 0"),
        (
            "pair",
            [(0.9,), (0.9, 1.0), (math.nan, 0.9), (0.9, "0.9"), (True, 0.9), 0.9, "99", None],
            r"2 numbers in \[0, 1\)",
        ),
        ("color", ["green", None, 1, ["red"]], r"one of \('red', 'blue'\)"),
        ("joint", [1, 0, "yes", None], "True or False"),
        ("limit", [0, math.nan, False], "finite and positive"),
    ],
)
def test_a_wrong_value_is_refused_with_name_limit_and_value(name, values, limit):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be {limit}, got ") as refused:
            Options(**{name: value})
        assert str(value) in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"count": np.int64(3), "share": np.float32(0.25)},
        {"share": 0, "drop": 0.0, "rate": 1, "weight": np.float64(2)},
        {"pair": [0.5, np.float32(0.25)], "limit": np.float32(1.5)},
        {"share": 1, "color": "blue", "joint": True},
        {"joint": np.False_},
    ],
    ids=str,
)
def test_numbers_of_numpy_and_lists_are_taken_and_kept_as_pythons(given):
    kept = asdict(Options(**given))

    assert kept == asdict(Options()) | given | (
        {"pair": tuple(given["pair"])} if "pair" in given else {}
    )
    assert json.loads(json.dumps(kept)) == kept | {"pair": list(kept["pair"])}


@pytest.mark.parametrize("value", [10**5000, -(10**5000), "x" * 10**6], ids=["", "-", "text"])
def test_a_value_of_any_length_is_refused_in_a_short_message(value):
    with pytest.raises(ValueError, match="width must be") as refused:
        Options(width=value)

    assert len(str(refused.value)) < 1200


def test_a_field_that_may_be_none_is_left_so():
    assert Options(limit=None).limit is None
