"""The raw ids and histories that a model stores to answer requests by raw id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.data.id_map import IdMap

if TYPE_CHECKING:
    from ssept_ext.data.interactions import Interactions


@dataclass(frozen=True, eq=False)
class KnownHistories:
    """Histories of users 1..U with items 1..I, and the raw ids of these numbers."""

    user_ids: IdMap
    item_ids: IdMap
    histories: Histories | None
    """All users in order, each with events oldest first or none. None if the model was saved without histories."""
    item_counts: IntArray | None = None
    """(I + 1,) number of events of each item; given only without histories, which would be counted otherwise."""

    def __post_init__(self) -> None:
        if self.histories is None:
            counts = self.item_counts
            if counts is None or counts.shape != (len(self.item_ids) + 1,) or counts.min() < 0:
                raise ValueError(
                    f"without histories, there must be counts of {len(self.item_ids)} items"
                )
            return
        users, offsets, items, times = self.histories
        if len(users) != len(self.user_ids) or len(offsets) != len(users) + 1:
            raise ValueError(f"{len(users)} histories do not fit {len(self.user_ids)} users")
        if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets of histories must rise from 0 to {len(items)} events")
        if len(items) and not (items.min() >= 1 and items.max() <= len(self.item_ids)):
            raise ValueError(f"histories hold items outside 1..{len(self.item_ids)}")
        if times is not None and times.shape != items.shape:
            raise ValueError(f"times of shape {times.shape} do not fit {len(items)} events")

    @classmethod
    def from_interactions(cls, interactions: Interactions) -> KnownHistories:
        """Take all events of `interactions`."""
        return cls(interactions.user_ids, interactions.item_ids, interactions.to_histories())

    @classmethod
    def from_dataset(
        cls, dataset: SASRecDataSet, user_ids: IdMap, item_ids: IdMap
    ) -> KnownHistories:
        """Take all events of a data set whose ids are the numbers of the maps.

        Raises
        ------
        ValueError
            If the largest ids of the data set are not the largest numbers of the maps.
        """
        num_users, num_items = len(user_ids), len(item_ids)
        if (dataset.usernum, dataset.itemnum) != (num_users, num_items):
            raise ValueError(
                f"the data has users up to {dataset.usernum} and items up to {dataset.itemnum}, but "
                f"there are raw ids of {num_users} users and {num_items} items: they are of other data"
            )
        every_user = np.arange(1, num_users + 1)
        return cls(user_ids, item_ids, dataset.histories("all", every_user))

    def to_dataset(self, *, hold_out: bool = True) -> SASRecDataSet:
        """Return all events as a data set, whose arrays are shared; `hold_out` is that of `Interactions.to_dataset`.

        Raises
        ------
        ValueError
            If the model was saved without histories.
        """
        if self.histories is None:
            raise ValueError("the model was saved without histories")
        dataset = SASRecDataSet(histories=self.histories, hold_out=hold_out)
        dataset.user_ids, dataset.item_ids = self.user_ids, self.item_ids
        dataset.itemnum = len(self.item_ids)  # the last of which may have no event
        return dataset

    def translate(self, dataset: SASRecDataSet, *, new_users: bool) -> SASRecDataSet:
        """Return a data set with raw ids in the numbers of these maps; itself if it is in them already.

        Parameters
        ----------
        new_users
            Whether users may be unknown; they get numbers after the known ones.

        Raises
        ------
        ValueError
            If an item, or a user without `new_users`, is unknown, or the raw ids of one kind are missing; names it, and
            the file of the data set.
        """
        user_ids, item_ids = dataset.user_ids, dataset.item_ids
        if (user_ids, item_ids) == (self.user_ids, self.item_ids):
            return dataset
        foreign = f"{dataset.filename or 'dataset'} does not belong to the model"
        if user_ids is None or item_ids is None:
            missing = "user_ids" if user_ids is None else "item_ids"
            raise ValueError(f"{foreign}, which has raw ids of users and items: {missing} is None")
        for mine, theirs in ((self.user_ids, user_ids), (self.item_ids, item_ids)):
            if mine.type != theirs.type:
                raise ValueError(
                    f"{foreign}, whose {mine.noun} ids are {mine.type}, got {theirs.type}"
                )
        try:
            items = self.item_ids.encode(item_ids.raw)
            users = self.user_ids.encode(user_ids.raw, "zero" if new_users else "raise")
        except KeyError as error:
            raise ValueError(f"{foreign}: {error.args[0]}") from None
        new = users == 0
        users[new] = len(self.user_ids) + 1 + np.arange(new.sum())
        if item_ids == self.item_ids and np.array_equal(users, np.arange(1, len(users) + 1)):
            return dataset
        translated = dataset.renumbered(np.append(0, users), np.append(0, items))
        translated.user_ids, translated.item_ids = self.user_ids.joined(user_ids)[0], self.item_ids
        translated.itemnum = len(self.item_ids)
        return translated

    def of(self, user: int) -> IntArray:
        """Return the items of user number `user`, see `events`."""
        return self.events(user)[0]

    def events(self, user: int) -> tuple[IntArray, IntArray | None]:
        """Return the items of user number `user` and their times; none for number 0, which stands for an unknown user.

        Times are None if they are not known, of no user.

        Raises
        ------
        ValueError
            If the model was saved without histories; names the user.
        """
        histories = self.histories
        if not user:
            return _NONE, None if histories is None or histories.times is None else _NONE
        if histories is None:
            (raw,) = self.user_ids.decode([user]).tolist()
            raise ValueError(
                f"histories must be given with one of user {raw!r}: the model was saved without any"
            )
        rows = slice(histories.offsets[user - 1], histories.offsets[user])
        return histories.items[rows], None if histories.times is None else histories.times[rows]

    @cached_property
    def popularity(self) -> IntArray:
        """(I + 1,) number of events of each item."""
        if self.histories is None:
            assert self.item_counts is not None
            return self.item_counts
        return np.bincount(self.histories.items, minlength=len(self.item_ids) + 1)


_NONE = np.zeros(0, np.int64)
