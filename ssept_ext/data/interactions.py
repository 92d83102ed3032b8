"""Events read from files and data frames, cleaned and numbered for training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.cleaning import Duplicates, drop_duplicates, k_core, renumber, sort_events
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, to_offsets
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.prepared import SUFFIX, Prepared, is_prepared, load_prepared, save_prepared
from ssept_ext.data.sources.columns import Codes, Columns, RawEvents, arrow, encode_ids, take_times
from ssept_ext.data.sources.delimited import Delimited, read_delimited
from ssept_ext.data.sources.frames import to_arrow
from ssept_ext.data.sources.opening import open_events
from ssept_ext.data.times import Time, whole_times
from ssept_ext.utils.checks import check_at_least, check_one_of, shown
from ssept_ext.utils.optional import require


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events sorted by user and time, with users and items numbered from 1, and their raw ids.

    Use `from_dataframe` (or its other names, `from_pandas` and `from_polars`), `from_csv` or
    `from_parquet`. All of them process events in this order:

    1. Users and items are numbered in the order in which they first appear in the source, as in
       SASRec's preprocessing and in RecBole, so the same source always gives the same numbers.
    2. Events are sorted by user and time; events of the same time stay in the order of the source.
    3. Duplicates are dropped, see `Duplicates`.
    4. Users with fewer than `min_user_events` events and items with fewer than `min_item_events` are
       dropped repeatedly until all that remain have enough events (the k-core).
    5. The remaining users and items are renumbered without gaps, in the same order.

    Ids may be integers (kept as int64), strings, categories of these, or UUIDs, either `uuid.UUID`
    objects or 16 bytes. All users must have one type, and so must all items. Times may be numbers, dates or
    datetimes.

    Attributes
    ----------
    offsets
        (U + 1,) int64, where the events of each user start: those of user number u are
        `offsets[u - 1]` to `offsets[u] - 1`.
    items
        (E,) int64, item numbers from 1.
    times
        (E,) int64, float64 or datetime64, in a prepared file as `to_histories` gives them; None if the source had no
        times and was in time order.
    user_ids, item_ids
        The `IdMap` between numbers and raw ids.

    Examples
    --------
    >>> import pyarrow as pa
    >>> frame = pa.table({"user": ["ann", "bob", "ann"], "item": [70, 20, 20], "timestamp": [5, 1, 2]})
    >>> interactions = Interactions.from_dataframe(frame)
    >>> interactions
    Interactions(3 events, 2 users, 2 items)
    >>> interactions.item_ids.decode(interactions.items)
    array([20, 70, 20])
    """

    offsets: IntArray
    items: IntArray
    times: NDArray[Any] | None
    user_ids: IdMap
    item_ids: IdMap

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        *,
        user: str = "user",
        item: str = "item",
        timestamp: str | None = "timestamp",
        duplicates: Duplicates = "keep",
        min_user_events: int = 1,
        min_item_events: int = 1,
    ) -> Interactions:
        """Take events from a data frame of any library that narwhals supports.

        These are pandas, Polars (lazy frames too), PyArrow and others.

        Parameters
        ----------
        frame
            A data frame with one event per row.
        user, item, timestamp
            Names of the columns; `timestamp=None` if rows are in time order.
        duplicates
            Which events of the same user and item to keep.
        min_user_events, min_item_events
            Least number of events of each user and item, after duplicates were dropped.

        Raises
        ------
        TypeError
            If `frame` is not a data frame, or a column (named) holds something that cannot be an id or a
            time.
        ValueError
            If a column is missing, an id or a time is missing or not finite (names column, value and row,
            counted from 0), no event is left, or an argument is out of range.
        ImportError
            If narwhals or PyArrow is missing: they come with `ssept_ext[data]`.
        """
        events = _take_columns(frame, Columns(user, item, timestamp))
        return cls.from_events(events, duplicates, min_user_events, min_item_events)

    from_pandas = from_dataframe
    from_polars = from_dataframe

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        user: str = "user",
        item: str = "item",
        timestamp: str | None = "timestamp",
        delimiter: str = ",",
        quoting: bool = True,
        duplicates: Duplicates = "keep",
        min_user_events: int = 1,
        min_item_events: int = 1,
    ) -> Interactions:
        """Read events from delimited text with a header, plain or compressed with gzip.

        Ids are int64 if the whole column consists of integers without leading zeros or signs of plus,
        and strings otherwise, so `007` keeps its zeros.

        Parameters
        ----------
        path
            The file.
        delimiter
            What separates columns, one or more characters.
        quoting
            Whether `"` quotes a field, which may then hold delimiters and line ends. False takes quotes as text, as
            do delimiters of several characters.
        user, item, timestamp, duplicates, min_user_events, min_item_events
            As for `from_dataframe`.

        Raises
        ------
        ValueError
            As for `from_dataframe`; names file, line number and text of a bad line.
        ImportError
            If PyArrow is missing: it comes with `ssept_ext[data]`.
        """
        layout = Delimited(Columns(user, item, timestamp), delimiter, quoting=quoting)
        with open_events(path) as (source, stream):
            events = read_delimited(stream, source, layout)
        return cls.from_events(events, duplicates, min_user_events, min_item_events)

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        *,
        user: str = "user",
        item: str = "item",
        timestamp: str | None = "timestamp",
        duplicates: Duplicates = "keep",
        min_user_events: int = 1,
        min_item_events: int = 1,
    ) -> Interactions:
        """Read events from a Parquet file or a folder of them; other columns are not read.

        Parameters and errors are those of `from_dataframe`, and errors also name the file.
        """
        pa = arrow()
        columns = Columns(user, item, timestamp)
        try:
            available = pa.parquet.ParquetDataset(path).schema.names
            table = pa.parquet.read_table(path, columns=columns.among(available, "it"))
            events = _take_columns(table, columns)
        except (FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(f"{path}: {error}") from error
        except TypeError as error:
            raise TypeError(f"{path}: {error}") from error
        return cls.from_events(events, duplicates, min_user_events, min_item_events)

    @classmethod
    def from_events(
        cls,
        events: RawEvents,
        duplicates: Duplicates = "keep",
        min_user_events: int = 1,
        min_item_events: int = 1,
    ) -> Interactions:
        """Sort, filter and number the events from a reader; parameters as for `from_dataframe`."""
        check_one_of("duplicates", duplicates, get_args(Duplicates))
        check_at_least("min_user_events", min_user_events, 1)
        check_at_least("min_item_events", min_item_events, 1)
        order = sort_events(events.users.codes, events.times)
        users, items = events.users.codes[order], events.items.codes[order]
        num_events = len(order)
        kept = drop_duplicates(users, items, len(events.items.ids), duplicates)
        order, users, items = order[kept], users[kept], items[kept]
        kept = k_core(users, items, min_user_events, min_item_events)
        order, users, items = order[kept], users[kept], items[kept]
        if not len(order):
            raise ValueError(
                f"no event is left of {num_events} ({len(events.users.ids)} users, "
                f"{len(events.items.ids)} items) with duplicates={duplicates!r}, "
                f"min_user_events={min_user_events}, min_item_events={min_item_events}"
            )
        times = None if events.times is None else events.times[order]
        del order
        user_numbers, user_ids = renumber(Codes(users, events.users.ids), "user")
        offsets = to_offsets(np.bincount(user_numbers)[1:])
        del user_numbers
        item_numbers, item_ids = renumber(Codes(items, events.items.ids), "item")
        return cls(offsets, item_numbers, times, user_ids, item_ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write histories, times as `to_histories` gives them, and raw ids to a file whose name ends in .safetensors.

        Whatever reads a prepared file maps it into memory, in next to no time: `load`, `SASRecDataSet` and
        `ssept train --data`. It is replaced in one step: a crash leaves either the old file or the new one.

        Raises
        ------
        ValueError
            If the name has another end, or a time does not fit into int64.
        OSError
            If the file cannot be written.
        """
        if not is_prepared(path):
            raise ValueError(f"path must end in {SUFFIX}, by which readers know it, got {path}")
        save_prepared(path, Prepared(self.to_histories(), self.user_ids, self.item_ids))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Interactions:
        """Map a file that `save` or `ssept prepare` wrote into memory.

        Parameters
        ----------
        verify
            Whether to read it all and compare its digest. Without it, a file that was changed inside is found out only
            where numbers are out of range.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is damaged, or not such a file; names it.

        Examples
        --------
        >>> import tempfile
        >>> import pyarrow as pa
        >>> frame = pa.table({"user": ["ann", "bob"], "item": [70, 20]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Interactions.from_dataframe(frame, timestamp=None).save(f"{folder}/events.safetensors")
        ...     Interactions.load(f"{folder}/events.safetensors")
        Interactions(2 events, 2 users, 2 items)
        """
        histories, user_ids, item_ids = load_prepared(path, verify=verify)
        return cls(histories.offsets, histories.items, histories.times, user_ids, item_ids)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return (
            f"Interactions({len(self):,} events, {len(self.user_ids):,} users, "
            f"{len(self.item_ids):,} items)"
        )

    @property
    def users(self) -> IntArray:
        """(E,) user number of each event, made anew at each access."""
        return np.repeat(np.arange(1, len(self.offsets)), np.diff(self.offsets))

    def to_histories(self) -> Histories:
        """Return the histories of users 1..U; the arrays are shared, not copied.

        Times are int64 there: integers in their own unit, numbers with a fraction rounded down, and dates and datetimes
        as whole seconds since 1970. Those that are not int64 here are copied.

        Raises
        ------
        ValueError
            If a time does not fit into int64; names it.
        """
        times = None if self.times is None else whole_times(self.times)
        return Histories(np.arange(1, len(self.offsets)), self.offsets, self.items, times)

    def to_dataset(
        self, *, hold_out: bool = True, split: Literal["last", "time"] | tuple[Time, Time] = "last"
    ) -> SASRecDataSet:
        """Return the data set to train on; its arrays are shared with these interactions.

        Parameters
        ----------
        hold_out
            Keep events for validation and test; False trains on every event.
        split
            Which events to keep: the last two of each user with three or more ("last"); the latest fifth of all, the
            same moments for all users ("time"); or those from two moments on, of which the first begins the validation
            part, and the second the test part. See `SASRecDataSet.split_by_time`, which takes other shares, too.

        Raises
        ------
        ValueError
            If a time does not fit into int64 (names it), `split` is none of these, or there are no times to split by.
        """
        moments = _moments(split)
        if not hold_out and moments is not None:
            raise ValueError(f"split must be 'last' without hold_out, got {shown(split)}")
        dataset = SASRecDataSet(histories=self.to_histories(), hold_out=hold_out)
        dataset.user_ids, dataset.item_ids = self.user_ids, self.item_ids
        if moments is not None:
            dataset.split_by_time(*moments)
        return dataset


def _take_columns(frame: Any, columns: Columns) -> RawEvents:
    table = require("narwhals", "data").from_native(frame).lazy()
    wanted = columns.among(table.collect_schema().names(), "the data frame")
    table = table.select(wanted).collect()
    user, item, time = columns
    return RawEvents(
        encode_ids(to_arrow(table[user]), user),
        encode_ids(to_arrow(table[item]), item),
        None if time is None else take_times(to_arrow(table[time]), time),
    )


def _moments(split: Any) -> tuple[Any, ...] | None:
    """Return the moments of a split by time, none for the default ones; None for a split of last events."""
    if isinstance(split, str) and split in ("last", "time"):
        return None if split == "last" else ()
    if not isinstance(split, (tuple, list)) or len(split) != 2:
        raise ValueError(
            f"split must be 'last', 'time', or the two moments from which events are for validation and for the test, "
            f"got {shown(split)}"
        )
    return tuple(split)
