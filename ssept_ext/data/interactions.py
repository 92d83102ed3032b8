"""Events of users with items under their raw ids, ready for training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, get_args
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ssept_ext.data.cleaning import Duplicates, drop_duplicates, k_core, renumber, sort_events
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.sources.columns import Codes, Columns, RawEvents, arrow, encode_ids, take_times
from ssept_ext.data.sources.delimited import Delimited, read_delimited
from ssept_ext.data.sources.opening import open_file
from ssept_ext.utils.optional import require


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events sorted by user and time, with users and items numbered from 1, and what they were called.

    Made by `from_dataframe` (also under the names `from_pandas` and `from_polars`), `from_csv` and
    `from_parquet`, which treat events alike, in this order:

    1. Users and items are numbered in the order in which they first appear in the source, as in
       SASRec's preprocessing and in RecBole: the same source always gives the same numbers.
    2. Events are sorted by user and time; events of the same time stay in the order of the source.
    3. Duplicates are dropped, see `Duplicates`.
    4. Users with fewer than `min_user_events` events and items with fewer than `min_item_events` are
       dropped again and again, until all that are left have enough: the k-core.
    5. Numbers that are left without events are closed up, their order kept.

    Ids may be integers (kept as int64), strings, categories of these, or UUIDs, as `uuid.UUID`
    objects or in 16 bytes; users and items each of one type. Times may be numbers, dates or
    datetimes.

    Attributes
    ----------
    users, items : (E,) int64, numbers from 1.
    times : (E,) int64, float64 or datetime64; None if the source had none, its order being that of
        time.
    user_ids, item_ids : the `IdMap` between numbers and raw ids.
    """

    users: IntArray
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
        """Take events from a data frame of pandas, Polars (lazy too), PyArrow, or others of narwhals.

        Parameters
        ----------
        frame : one row an event.
        user, item, timestamp : names of columns; `timestamp=None` if rows are in the order of time.
        duplicates : which events of the same user and item stay.
        min_user_events, min_item_events : what each user and item must have, after duplicates.

        Raises
        ------
        TypeError : `frame` is no data frame; a column holds what can be no id or no time; names it.
        ValueError : a missing column; a missing id or time, or one that is not finite, with column,
            row (counted from 0) and value; no event is left; an argument is outside its range.
        ImportError : narwhals or PyArrow is missing: they come with `ssept_ext[data]`.
        """
        nw = require("narwhals", "data")
        columns = Columns(user, item, timestamp)
        table = nw.from_native(frame)
        wanted = [name for name in columns if name is not None]
        available = table.collect_schema().names()
        for name in wanted:
            if name not in available:
                raise ValueError(f"the data frame has no column {name!r} among {available}")
        table = table.select(*dict.fromkeys(wanted)).lazy().collect()
        events = RawEvents(
            encode_ids(_to_arrow(table[user]), user),
            encode_ids(_to_arrow(table[item]), item),
            None if timestamp is None else take_times(_to_arrow(table[timestamp]), timestamp),
        )
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
        duplicates: Duplicates = "keep",
        min_user_events: int = 1,
        min_item_events: int = 1,
    ) -> Interactions:
        """Read events from delimited text with a header, plain or compressed with gzip.

        Ids are int64 if every one of the column is an integer written plainly, strings otherwise:
        `007` keeps its zeros.

        Parameters
        ----------
        path : the file.
        delimiter : one character.
        user, item, timestamp, duplicates, min_user_events, min_item_events : as for `from_dataframe`.

        Raises
        ------
        ValueError : as for `from_dataframe`, with file, line number and text of a bad line.
        ImportError : PyArrow is missing: it comes with `ssept_ext[data]`.
        """
        layout = Delimited(Columns(user, item, timestamp), delimiter)
        events = read_delimited(lambda: open_file(path), str(path), layout)
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
        """Read events from a Parquet file, or a folder of them; other columns are not read.

        Parameters and errors are those of `from_dataframe`; errors name the file too.
        """
        pa = arrow()
        wanted = [name for name in (user, item, timestamp) if name is not None]
        try:
            available = pa.parquet.ParquetDataset(path).schema.names
            if not set(wanted) <= set(available):
                missing = next(name for name in wanted if name not in available)
                raise ValueError(f"no column {missing!r} among {available}")
            return cls.from_dataframe(
                pa.parquet.read_table(path, columns=wanted),
                user=user,
                item=item,
                timestamp=timestamp,
                duplicates=duplicates,
                min_user_events=min_user_events,
                min_item_events=min_item_events,
            )
        except (pa.ArrowInvalid, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_events(
        cls,
        events: RawEvents,
        duplicates: Duplicates = "keep",
        min_user_events: int = 1,
        min_item_events: int = 1,
    ) -> Interactions:
        """Sort, filter and number what a reader gave; parameters as for `from_dataframe`."""
        if duplicates not in get_args(Duplicates):
            raise ValueError(
                f"duplicates must be one of {get_args(Duplicates)}, got {duplicates!r}"
            )
        for name, value in (
            ("min_user_events", min_user_events),
            ("min_item_events", min_item_events),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        order = sort_events(events.users.codes, events.times)
        users, items = events.users.codes[order], events.items.codes[order]
        kept = drop_duplicates(users, items, len(events.items.ids), duplicates)
        kept = kept[k_core(users[kept], items[kept], min_user_events, min_item_events)]
        if not len(kept):
            raise ValueError(
                f"no event is left of {len(order)} ({len(events.users.ids)} users, "
                f"{len(events.items.ids)} items) with duplicates={duplicates!r}, "
                f"min_user_events={min_user_events}, min_item_events={min_item_events}"
            )
        user_numbers, user_ids = renumber(Codes(users[kept], events.users.ids), "user")
        item_numbers, item_ids = renumber(Codes(items[kept], events.items.ids), "item")
        times = None if events.times is None else events.times[order[kept]]
        return cls(user_numbers, item_numbers, times, user_ids, item_ids)

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return (
            f"Interactions({len(self):,} events, {len(self.user_ids):,} users, "
            f"{len(self.item_ids):,} items)"
        )

    def to_histories(self) -> Histories:
        """All histories in arrays: users 1..n in order, each one's items oldest first."""
        counts = np.bincount(self.users, minlength=len(self.user_ids) + 1)
        return Histories(np.arange(1, len(counts)), np.cumsum(counts), self.items)

    def to_dataset(self) -> SASRecDataSet:
        """The data set to train on, split by leaving each user's last two events out."""
        users, offsets, items = self.to_histories()
        bounds, events = offsets.tolist(), items.tolist()
        return SASRecDataSet(
            histories={user: events[bounds[user - 1] : bounds[user]] for user in users.tolist()}
        )


def _to_arrow(column: Any) -> Any:
    """An Arrow array of a narwhals Series."""
    pa, nw = arrow(), require("narwhals", "data")
    try:
        if column.dtype != nw.Object:
            return column.to_arrow()
        # Here, because Polars would hand out the addresses of its objects.
        values = column.to_list()
        if any(isinstance(value, UUID) for value in values):
            return pa.array([value and value.bytes for value in values], pa.binary(16))
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, AttributeError) as error:
        raise TypeError(
            f"column {column.name!r} holds values of more than one type: {error}"
        ) from None
