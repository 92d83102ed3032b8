"""From events under raw ids to numbered histories."""

import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.interactions import COLUMNS, histories, of_rows

from ssept_ext.data.interactions import Interactions


@pytest.mark.parametrize(
    ("library", "kind"),
    [
        ("pandas", "DataFrame"),
        ("polars", "DataFrame"),
        ("polars", "LazyFrame"),
        ("pyarrow", "table"),
    ],
)
def test_any_data_frame_gives_the_same(library, kind):
    frame = getattr(pytest.importorskip(library), kind)

    interactions = Interactions.from_dataframe(frame(COLUMNS))

    assert interactions.user_ids.raw.tolist() == ["bob", "ann"]
    assert interactions.item_ids.raw.tolist() == [70, 50, 60]
    assert interactions.users.tolist() == [1, 1, 1, 2, 2]
    assert interactions.items.tolist() == [3, 1, 2, 1, 2]
    assert interactions.times.tolist() == [1, 3, 3, 2, 9]


def test_files_give_what_data_frames_give(tmp_path):
    frame = pd.DataFrame(COLUMNS | {"rating": 3.5})
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet")

    expected = histories(Interactions.from_pandas(frame))

    assert expected == {"bob": [60, 70, 50], "ann": [70, 50]}
    assert histories(Interactions.from_csv(tmp_path / "log.csv")) == expected
    assert histories(Interactions.from_parquet(tmp_path / "log.parquet")) == expected


def test_numbers_follow_the_order_of_first_appearance_not_of_time():
    interactions = of_rows(("z", 9, 5), ("a", 8, 1), ("z", 7, 0))

    assert interactions.user_ids.raw.tolist() == ["z", "a"]
    assert interactions.item_ids.raw.tolist() == [9, 8, 7]


def test_events_of_the_same_time_stay_in_the_order_of_the_source():
    rows = [(user, item, item // 40) for item in range(200) for user in "ba"]

    assert histories(of_rows(*rows)) == {"b": list(range(200)), "a": list(range(200))}


def test_without_times_the_order_is_that_of_rows():
    interactions = of_rows((1, 3), (2, 5), (1, 2), (1, 9), timestamp=None)

    assert histories(interactions) == {1: [3, 2, 9], 2: [5]}
    assert interactions.times is None


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(-5, 5)), min_size=1),
)
def test_sorting_is_that_of_python(rows):
    expected = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)

    assert histories(of_rows(*rows)) == expected


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ("keep", ["a", "a", "b", "a", "b", "b"]),
        ("first", ["a", "b"]),
        ("last", ["a", "b"]),
        ("consecutive", ["a", "b", "a", "b"]),
    ],
)
def test_duplicates(duplicates, expected):
    rows = [(1, item, when) for when, item in enumerate("aababb")] + [(2, "b", 0)]

    interactions = of_rows(*rows, duplicates=duplicates)

    assert histories(interactions) == {1: expected, 2: ["b"]}
    if duplicates in ("first", "last"):
        assert interactions.times[:2].tolist() == ([0, 2] if duplicates == "first" else [3, 5])


def test_duplicates_are_judged_in_the_order_of_time():
    interactions = of_rows((1, "a", 3), (1, "b", 1), (1, "a", 2), duplicates="first")

    assert histories(interactions) == {1: ["b", "a"]}
    assert interactions.times.tolist() == [1, 2]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
@example([(0, 0), (0, 1), (1, 1), (1, 2), (5, 5), (5, 6), (6, 5), (6, 6)], 2, 2)
def test_the_core_is_the_largest_in_which_all_have_enough(rows, min_user, min_item):
    expected = rows
    while True:
        users, items = Counter(u for u, _ in expected), Counter(i for _, i in expected)
        left = [(u, i) for u, i in expected if users[u] >= min_user and items[i] >= min_item]
        if left == expected:
            break
        expected = left
    limits = {"min_user_events": min_user, "min_item_events": min_item}

    if not expected:
        with pytest.raises(ValueError, match=f"no event is left of {len(rows)} "):
            of_rows(*rows, timestamp=None, **limits)
        return
    interactions = of_rows(*rows, timestamp=None, **limits)

    assert sorted((u, i) for u, items in histories(interactions).items() for i in items) == sorted(
        expected
    )
    assert interactions.users.max() == len(interactions.user_ids) == len({u for u, _ in expected})
    assert interactions.items.max() == len(interactions.item_ids) == len({i for _, i in expected})


def test_the_core_counts_what_duplicates_leave():
    rows = [(1, "a", 0), (1, "a", 1), (2, "a", 0), (2, "b", 1), (3, "b", 0), (3, "a", 2)]

    interactions = of_rows(*rows, duplicates="first", min_user_events=2)

    assert interactions.user_ids.raw.tolist() == [2, 3]


def test_a_column_that_is_there_twice_is_refused():
    frame = pd.DataFrame([[1, 2, 3, 4]], columns=["user", "user", "item", "timestamp"])

    with pytest.raises(ValueError, match="user"):
        Interactions.from_pandas(frame)


def test_a_missing_column_is_named_with_those_there_are(csv, tmp_path):
    frame = pd.DataFrame({"userId": [1], "item": [1]})
    frame.to_parquet(tmp_path / "log.parquet")

    for read in (
        lambda: Interactions.from_pandas(frame),
        lambda: Interactions.from_parquet(tmp_path / "log.parquet"),
        lambda: csv("userId,item\n1,1\n"),
    ):
        with pytest.raises(ValueError, match=r"no column 'user' among \['userId', 'item'\]"):
            read()


def test_only_the_column_of_times_can_be_left_out():
    with pytest.raises(ValueError, match="no column None among"):
        Interactions.from_pandas(pd.DataFrame(COLUMNS), user=None)


def test_what_is_no_data_frame_is_refused():
    with pytest.raises(TypeError):
        Interactions.from_dataframe({"user": [1]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duplicates": "drop"}, "duplicates must be one of .*got 'drop'"),
        ({"min_user_events": 0}, "min_user_events must be an integer of at least 1, got 0"),
        ({"min_item_events": -1}, "min_item_events must be an integer of at least 1, got -1"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        of_rows((1, 1, 1), **arguments)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no event is left of 0"):
        Interactions.from_pandas(pd.DataFrame({"user": [1], "item": [1]})[:0], timestamp=None)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "log.parquet").write_bytes(b"PAR1 not really")

    with pytest.raises(ValueError, match=r"log\.parquet: "):
        Interactions.from_parquet(tmp_path / "log.parquet")


def test_a_missing_dependency_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)

    with pytest.raises(ImportError, match=r"narwhals is missing: pip install 'ssept_ext\[data\]'"):
        Interactions.from_pandas(pd.DataFrame(COLUMNS))


def test_the_package_needs_none_of_the_optional_dependencies():
    script = (
        "import sys; sys.modules.update(dict.fromkeys("
        "['narwhals', 'pyarrow', 'pandas', 'polars', 'pooch', 'requests']));"
        "from ssept_ext import IdMap, cli; print(IdMap(['a']).encode(['a'])); cli.main(['info'])"
    )

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[1]")


def test_the_data_set_holds_out_the_last_two_events():
    dataset = of_rows(*((1, item, -item) for item in range(5)), (2, 4, 0)).to_dataset()

    assert dataset.User == {1: [5, 4, 3, 2, 1], 2: [5]}
    assert dataset.user_test == {1: [1], 2: []}
    assert (dataset.usernum, dataset.itemnum) == (2, 5)


def test_without_hold_out_the_data_set_trains_on_all_events():
    dataset = of_rows(*((1, item, item) for item in range(4))).to_dataset(hold_out=False)

    assert dataset.user_train == {1: [1, 2, 3, 4]}
    assert dataset.user_test == {1: []}


@pytest.mark.parametrize("events_per_user", [10, 100])
def test_an_event_takes_at_most_24_bytes_ids_and_times_and_data_set_included(events_per_user):
    num_events = 200_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "user": rng.integers(10**9, 10**9 + num_events // events_per_user, num_events),
            "item": rng.integers(10**6, 10**6 + num_events // 100, num_events),
            "timestamp": rng.integers(0, 10**9, num_events),
        }
    )
    of_rows((1, 2, 3)).to_dataset()  # imports what is needed
    tracemalloc.start()

    interactions = Interactions.from_pandas(frame)
    dataset = interactions.to_dataset()

    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset.histories("all").items) == num_events
    assert held / num_events <= 24


def test_the_data_set_shares_the_arrays_of_the_interactions():
    interactions = of_rows((1, 2, 3), (1, 3, 4), (2, 2, 5))

    dataset = interactions.to_dataset()

    assert np.shares_memory(dataset.histories("all").items, interactions.items)
    assert np.shares_memory(dataset.histories("all").times, interactions.times)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2020-01-02", "1970-01-01"], [0, 1577923200]),
        (["1970-01-01T00:00:01.5", "1969-12-31T23:59:58.5"], [-2, 1]),
        ([2.5, -2.5], [-3, 2]),
    ],
    ids=["dates", "datetimes", "fractions"],
)
def test_histories_have_times_in_whole_seconds_or_units(times, expected):
    dated = [np.datetime64(when) if isinstance(when, str) else when for when in times]

    histories = of_rows((1, 7, dated[0]), (1, 8, dated[1])).to_histories()

    assert histories.times.tolist() == expected
    assert histories.times.dtype == np.int64


def test_without_times_histories_have_none():
    assert of_rows((1, 3), (2, 5), timestamp=None).to_histories().times is None
