"""Times of every kind as int64."""

import numpy as np
import pytest

from ssept_ext.data.times import whole_times


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.uint64, np.int64])
def test_integers_stay_as_they_are(dtype):
    found = whole_times(np.array([0, 7, 100], dtype))

    assert (found.tolist(), found.dtype) == ([0, 7, 100], np.int64)


def test_int64_is_not_copied():
    times = np.array([-(2**63), 2**63 - 1])

    assert whole_times(times) is times


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.array([1.5, -1.5, 2.0**62]), [1, -2, 2**62]),
        (np.array([2.5], np.float32), [2]),
        (np.array([-1, 1_999], "datetime64[ms]"), [-1, 1]),
        (np.array([-(2**62)], "datetime64[ns]"), [-(2**62) // 10**9]),
        (np.array([-1, 1], "datetime64[D]"), [-86_400, 86_400]),
        (np.array(["1971"], "datetime64[Y]"), [365 * 86_400]),
        (np.array(["1970-01-02"], ">M8[D]"), [86_400]),
        (np.array([2**40], "datetime64[s]"), [2**40]),
    ],
)
def test_fractions_are_rounded_down_and_datetimes_become_seconds(times, expected):
    found = whole_times(times)

    assert (found.tolist(), found.dtype) == (expected, np.int64)


@pytest.mark.parametrize(
    ("times", "named"),
    [
        (np.array([1, np.nan]), "nan"),
        (np.array([1, -np.inf]), "-inf"),
        (np.array([1, 2.0**63]), r"9.22\d*e\+18"),
        (np.array([1, 2**63], np.uint64), str(2**63)),
        (np.array([0, "NaT"], "datetime64[ns]"), "NaT"),
        (np.array([0, 2**62], "datetime64[D]"), r"12626\d+-\d\d-\d\d"),
        (np.array([0, 2**60], "datetime64[h]"), r"131\d+-\d\d-\d\dT\d\d"),
        (np.array([0, 2**42], "datetime64[Y]"), "43980465\\d+"),
    ],
)
def test_what_does_not_fit_is_named(times, named):
    with pytest.raises(
        ValueError, match=f"a time must be finite and fit into int64, got ({named})$"
    ):
        whole_times(times)


@pytest.mark.parametrize("times", [np.array(["1"]), np.array([True]), np.array([1j])])
def test_what_is_no_time_is_refused(times):
    with pytest.raises(ValueError, match="times must be numbers or datetimes, got"):
        whole_times(times)
