"""Histories of users, checked and split into training, validation and test items."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import ArrayLike

from ssept_ext.data.histories import Histories, IntArray, as_histories, check_ids
from ssept_ext.data.id_map import IdMap
from ssept_ext.data.prepared import is_prepared, load_prepared
from ssept_ext.data.splits import (
    ByTime,
    LastEvents,
    Split,
    SplitCounts,
    check_by_time,
    counts_of,
    moments_of,
)
from ssept_ext.data.text import group_by_user, read_events
from ssept_ext.data.times import Time, to_times
from ssept_ext.utils.checks import check_one_of

Part: TypeAlias = Literal["all", "train", "valid", "test"]
Dict: TypeAlias = dict[int, list[int]]


class DictView:
    """A part of the histories as a dict, made at the first access.

    The dict belongs to the user then, who may change it, so the data set reads this part from it.
    """

    def __init__(self, part: Part, make: Callable[[Dict], Dict] = dict) -> None:
        self._part, self._make = part, make

    @overload
    def __get__(self, dataset: None, owner: type) -> DictView: ...
    @overload
    def __get__(self, dataset: SASRecDataSet, owner: type) -> Dict: ...
    def __get__(self, dataset: SASRecDataSet | None, owner: type) -> DictView | Dict:
        if dataset is None:
            return self
        if self._part not in dataset._dicts:
            dataset._dicts[self._part] = self._make(
                dataset.histories(self._part, with_times=False).to_dict()
            )
        return dataset._dicts[self._part]

    def __set__(self, dataset: SASRecDataSet, value: Dict) -> None:
        dataset._dicts[self._part] = value


class SASRecDataSet:
    """Histories of users, oldest event first, and their leave-one-out split.

    The last event of a user is the test item and the one before it the validation item, unless `split`
    changes these numbers, or `split_by_time` splits all histories at the same moments. Users with fewer than 3 events
    have training events only.

    Histories are kept in flat arrays, which `histories` returns. The dicts are built from them at the first
    access. A dict that was accessed or assigned replaces the arrays for its part, so that changes to it are
    never ignored; this costs memory and time. Ids start at 1 and need not be consecutive: users without
    events have no entry in the dicts.

    Attributes
    ----------
    User
        dict[int, list[int]], user id to all item ids in time order.
    user_train, user_valid, user_test
        dict[int, list[int]] with the same keys as `User`; lists of held-out items may be empty.
    Items
        set[int], the items of all histories.
    usernum, itemnum
        int, the largest user and item id. Embedding tables need one row more.
    filename, col_sep
        As given.
    with_time
        bool, whether the file has a third column, of times, or a prepared one has times; None without a file.
    user_ids, item_ids
        The `IdMap` of raw ids, in data sets that `Interactions.to_dataset` made or a prepared .safetensors file holds;
        None if there are none.

    Examples
    --------
    >>> data = SASRecDataSet(histories={1: [4, 2, 9, 5], 2: [7]})
    >>> data.histories("train").items
    array([4, 2, 7])
    >>> data.user_test
    {1: [5], 2: []}
    """

    User = DictView("all")
    user_train = DictView("train")
    user_valid = DictView("valid")
    user_test = DictView("test")
    user_ids: IdMap | None = None
    item_ids: IdMap | None = None

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        col_sep: str | None = " ",
        *,
        histories: Mapping[int, Sequence[int]] | Histories | None = None,
        hold_out: bool = True,
    ) -> None:
        """Read `filename`, or take `histories`.

        Parameters
        ----------
        filename
            A file of lines `user item`, each user's in time order, or `user item time`, which are
            sorted by time (int or float; events of the same time stay in the order of the file). It
            may be compressed with gzip, whatever its name. Blank lines are skipped. Or a file whose name ends in
            .safetensors, as `ssept prepare` and `Interactions.save` write it: it is mapped into memory.
        col_sep
            What separates columns, one or more characters; None for any run of whitespace. Of text only.
        histories
            User id to item ids in time order, or `Histories`, instead of a file. Arrays are not copied.
        hold_out
            False makes every event a training event.

        Raises
        ------
        ValueError
            If a line is malformed (names file, line number and text), an id is not an integer from 1
            to `MAX_ID`, there are no events, or a file is damaged.
        """
        if (filename is None) == (histories is None):
            raise ValueError("give either filename or histories, and not both")
        if col_sep == "":
            raise ValueError(
                "col_sep must be at least one character, or None for whitespace, got ''"
            )
        self.filename = filename
        self.col_sep = col_sep
        self.with_time: bool | None = None
        if filename is not None and is_prepared(filename):
            prepared, self.user_ids, self.item_ids = load_prepared(filename)
            self.with_time = prepared.times is not None
            self._hold(prepared)
        elif filename is not None:
            columns = read_events(filename, col_sep)
            self.with_time = columns.times is not None
            self._hold(group_by_user(*columns))
        else:
            assert histories is not None
            self._hold(as_histories(histories))
            if not len(self._histories.items):
                raise ValueError(f"histories of {len(self._histories.users)} users hold no events")
        if not hold_out:
            SASRecDataSet.split(self, 0, 0, 1)

    def _hold(self, histories: Histories) -> None:
        """Start from these histories, split by default."""
        self._histories = histories
        self._dicts: dict[Part, Dict] = {}
        # What dicts held when they were last laid out in arrays, and the arrays.
        self._seen: dict[Part, tuple[list[tuple[int, list[int]]], Histories]] = {}
        self._split: Split = LastEvents()
        self.usernum = int(histories.users.max(initial=0))
        self.itemnum = int(histories.items.max(initial=0))

    @cached_property
    def Items(self) -> set[int]:
        """The items of all histories."""
        return set(np.unique(self.histories("all").items).tolist())

    @property
    def num_users(self) -> int:
        """Number of users with an entry in `user_train`, which may be an empty one."""
        return len(self._dicts.get("train", self._histories.users))

    @property
    def moments(self) -> tuple[int, int] | None:
        """The first moments of the validation and of the test part; None if the split is not by time."""
        split = self._split
        return (split.valid_from, split.test_from) if isinstance(split, ByTime) else None

    def histories(
        self, part: Part, users: ArrayLike | None = None, *, with_times: bool = True
    ) -> Histories:
        """Return histories in arrays.

        Parameters
        ----------
        part
            "train", "valid" or "test"; "all" for the whole histories.
        users
            Ids of the users to return, in this order; None for all.
        with_times
            False leaves out times, which then take no memory.

        Returns
        -------
        Histories
            One row for each user, empty for a user without events in this part. Times are those of the file or of the
            histories given: int64, where the file has fractions rounded down. A part whose dict was changed has none.

        Raises
        ------
        ValueError
            If `part` is none of these, or a dict was given an id that is not an integer from 1 to
            `MAX_ID`.
        """
        check_one_of("part", part, get_args(Part))
        if part in self._dicts:
            found = self._edited(part, users)
            return found if with_times else found._replace(times=None)
        held = self._histories if users is None else self._histories.of(users)
        return self._part(held, part, with_times)

    def _edited(self, part: Part, users: ArrayLike | None) -> Histories:
        """What the dict of a part holds, as `histories` returns it."""
        edited = self._dicts[part]
        if users is None:
            return self._laid_out(part)
        wanted = np.asarray(users, np.int64)
        some = {user: edited[user] for user in wanted.tolist() if user in edited}
        whole = len(some) == len(edited) or self._histories.times is not None
        return (self._laid_out(part) if whole else Histories.from_mapping(some)).of(wanted)

    def _laid_out(self, part: Part) -> Histories:
        """Lay out the dict of a part in arrays, again only if it has changed since the last time."""
        edited = self._dicts[part]
        if part in self._seen and isinstance(edited, dict):
            rows, found = self._seen[part]
            with suppress(ValueError):  # an array among the items cannot be compared
                if list(edited.items()) == rows:
                    return found
        found = Histories.from_mapping(edited)
        if self._histories.times is not None:  # which a dict does not hold
            given = self._part(self._histories, part)
            if all(map(np.array_equal, found[:3], given[:3])):
                found = given
        if set(map(type, edited.values())) == {list}:
            self._seen[part] = [(user, items.copy()) for user, items in edited.items()], found
        return found

    def users_with(self, part: Part) -> IntArray:
        """Ids of the users with at least one event in this part, in the order of the rows."""
        edited = self._dicts.get(part)
        if edited is not None:
            return check_ids([user for user, items in edited.items() if len(items)], "user")
        start, end = self._bounds(self._histories, part)
        return self._histories.users[start < end]

    def split(
        self,
        valid_size: int | None = None,
        test_size: int | None = None,
        min_interactions: int | None = None,
    ) -> None:
        """Split the histories again by their last events, into other parts or after changes to `User`.

        Changes to `user_train`, `user_valid` and `user_test` are lost.

        Parameters
        ----------
        valid_size, test_size
            Of each user, the last `test_size` events are the test part, and `valid_size` events before them
            the validation part. Evaluations look for the first event of a part only. None keeps the size, which
            is 1 after a split by time.
        min_interactions
            Users with fewer events have training events only. None keeps the limit, or takes 3.

        Raises
        ------
        ValueError
            If a size is negative or `min_interactions` leaves no training event (names it), or `User` holds an
            id that is not an integer from 1 to `MAX_ID`.
        """
        before = self._split if isinstance(self._split, LastEvents) else LastEvents()
        given = {
            "valid_size": valid_size,
            "test_size": test_size,
            "min_interactions": min_interactions,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        self._resplit(replace(before, **changes), self._whole())

    def split_by_time(
        self,
        valid_from: Time | None = None,
        test_from: Time | None = None,
        *,
        valid_share: float = 0.1,
        test_share: float = 0.1,
    ) -> SplitCounts:
        """Split the histories at two moments, the same for all users, as events happen in service.

        Events before `valid_from` are for training, those before `test_from` for validation, and later ones for the
        test. Evaluations look for the first event of a part, given all events before it, of users with a training
        event. A model is then never trained on what happened after the events that it is tested on, as it is if the
        last events of each user are held out (Ji et al., *A Critical Study on Data Leakage in Recommender System
        Offline Evaluation*, 2023). Changes to `user_train`, `user_valid` and `user_test` are lost.

        Parameters
        ----------
        valid_from, test_from
            The moments, in the unit of the times or as datetimes, which are UTC; both or none.
        valid_share, test_share
            Without moments: about these shares of all events, the latest ones, are the parts. Events of one moment
            stay together.

        Returns
        -------
        SplitCounts
            How many events and users are in each part, and how many users and items are new after the training part.

        Raises
        ------
        ValueError
            If there are no times, they are not in order, no event is for training, or an argument is out of range.

        Examples
        --------
        >>> histories = Histories.from_mapping({1: [4, 2, 9], 2: [7, 4], 3: [5]})
        >>> data = SASRecDataSet(histories=histories._replace(times=np.array([1, 2, 8, 3, 9, 8])))
        >>> counts = data.split_by_time(valid_from=8, test_from=9)
        >>> counts.train_events, counts.valid_events, counts.test_events
        (3, 2, 1)
        >>> counts.new_users, data.user_valid
        (1, {1: [9], 2: [], 3: [5]})
        """
        histories = self._whole()
        if (valid_from is None) != (test_from is None):
            raise ValueError("give both valid_from and test_from, or neither")
        if valid_from is None:
            split = moments_of(histories, valid_share, test_share)
        else:
            moments = {"valid_from": valid_from, "test_from": test_from}
            split = ByTime(**{name: int(to_times(name, [at])[0]) for name, at in moments.items()})
        check_by_time(histories, split)
        self._resplit(split, histories)
        return counts_of(histories, split)

    def _whole(self) -> Histories:
        """All events, with changes to `User`."""
        return self._laid_out("all") if "all" in self._dicts else self._histories

    def _resplit(self, split: Split, histories: Histories) -> None:
        self._histories, self._split = histories, split
        self._dicts = {part: items for part, items in self._dicts.items() if part == "all"}
        self._seen = {}

    def renumbered(self, users: IntArray, items: IntArray) -> SASRecDataSet:
        """Return a copy where user u is `users[u]` and item i is `items[i]`, ordered by user."""

        def renumber(histories: Histories) -> Histories:
            new = histories._replace(users=users[histories.users], items=items[histories.items])
            return new.of(np.sort(new.users))

        made = copy(self)
        made.__dict__.pop("Items", None)
        made._histories, made._seen = renumber(self._histories), {}
        made.usernum = int(made._histories.users.max(initial=0))
        made.itemnum = int(made._histories.items.max(initial=0))
        made._dicts = {
            part: renumber(Histories.from_mapping(edited)).to_dict()
            for part, edited in self._dicts.items()
        }
        return made

    def _part(self, histories: Histories, part: Part, with_times: bool = True) -> Histories:
        """Cut a part out of whole histories, which must have times if the split is by time."""
        kept = histories if with_times else histories._replace(times=None)
        return kept if part == "all" else kept.between(*self._bounds(histories, part))

    def _bounds(self, histories: Histories, part: Part) -> tuple[IntArray, IntArray]:
        """Where in each of these histories the events of `part` start and end."""
        valid, test = self._split.ends(histories)
        lengths = np.diff(histories.offsets)
        start = np.zeros_like(lengths)
        bounds = {
            "all": (start, lengths),
            "train": (start, valid),
            "valid": (valid, test),
            "test": (test, lengths),
        }
        return bounds[part]
