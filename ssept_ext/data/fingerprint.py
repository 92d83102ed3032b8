"""What tells one data set from another, for models and files that do not hold the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssept_ext.data.dataset import SASRecDataSet


@dataclass(frozen=True)
class Fingerprint:
    """Counts and digests of a data set. Equal data sets have equal fingerprints on every machine.

    Examples
    --------
    >>> data = SASRecDataSet(histories={1: [4, 2, 9, 5], 2: [7]})
    >>> print(Fingerprint.of(data))
    data of 2 users, 5 events and items up to 9 (digest daf2f7c4)
    """

    source: str | None = field(compare=False)
    """Name of the file, without its folder."""
    users: int
    """Number of users with events."""
    items: int
    """The largest item id."""
    events: int
    """Number of events, held-out ones included."""
    histories: str
    """Digest of all events."""
    training: str
    """Digest of the training events."""
    validation: str
    """Digest of the validation events."""
    user_ids: str | None
    """Digest of the users' raw ids; None if they are unknown."""
    item_ids: str | None
    """Digest of the items' raw ids; None if they are unknown."""
    split_by_time: tuple[int, int] | None = field(default=None, compare=False)
    """The first moments of the validation and of the test part; None if the last events of each user are held out."""

    @classmethod
    def of(cls, dataset: SASRecDataSet) -> Fingerprint:
        """Compute the fingerprint of a data set, with the changes that its user has made to its dicts."""
        histories = dataset.histories("all")
        user_ids, item_ids = dataset.user_ids, dataset.item_ids
        return cls(
            source=None if dataset.filename is None else Path(dataset.filename).name,
            users=int(np.count_nonzero(np.diff(histories.offsets))),
            items=dataset.itemnum,
            events=len(histories.items),
            histories=histories.digest(),
            training=dataset.histories("train", with_times=False).digest(),
            validation=dataset.histories("valid", with_times=False).digest(),
            user_ids=None if user_ids is None else user_ids.digest,
            item_ids=None if item_ids is None else item_ids.digest,
            split_by_time=dataset.moments,
        )

    def __str__(self) -> str:
        return (
            f"{self.source or 'data'} of {self.users} users, {self.events} events and items up to {self.items} "
            f"(digest {self.histories[:8]})"
        )

    def against(self, other: Fingerprint) -> str:
        """Describe this data set and how the other one, which was given in its place, differs."""
        if self.histories != other.histories:
            return f"{self}, got {other}"
        if (self.training, self.validation) != (other.training, other.validation):
            return f"{self}, got the same events split otherwise into training and validation"
        return f"{self}, got the same events with other raw ids"
