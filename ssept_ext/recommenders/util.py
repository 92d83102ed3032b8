"""The data set of recommenders, which reads a file when it is split, and whose attributes may be assigned."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np

from ssept_ext.data import dataset as data
from ssept_ext.data.histories import Histories


class SASRecDataSet(data.SASRecDataSet):
    """`ssept_ext.SASRecDataSet` with the constructor and the `split` of recommenders.

    Without a file, it is empty until attributes are assigned.

    Parameters
    ----------
    filename, col_sep, histories, hold_out
        See `ssept_ext.SASRecDataSet`.
    others
        Other keywords have no effect, but for a warning.

    Examples
    --------
    >>> data = SASRecDataSet()
    >>> data.User[7], data.with_time
    ([], None)
    """

    User = data.DictView("all", lambda histories: defaultdict(list, histories))

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        col_sep: str | None = " ",
        *,
        histories: Any = None,
        hold_out: bool = True,
        **others: Any,
    ) -> None:
        warn_of_ignored(type(self), others)
        self._source = filename
        if filename or histories is not None:
            super().__init__(filename, col_sep, histories=histories, hold_out=hold_out)
            return
        self.filename, self.col_sep, self.with_time = filename, col_sep, None
        none = np.zeros(0, np.int64)
        self._hold(Histories(none, np.zeros(1, np.int64), none))

    def split(  # type: ignore[override]  # recommenders' result
        self,
        valid_size: int = 1,
        test_size: int = 1,
        min_interactions: int = 3,
        verbose: bool = False,
    ) -> dict[str, int]:
        """Split as `ssept_ext.SASRecDataSet.split` does, and count.

        Parameters
        ----------
        valid_size, test_size, min_interactions
            See `ssept_ext.SASRecDataSet.split`.
        verbose
            Whether to print the counts.

        Returns
        -------
        dict[str, int]
            "num_users" and "num_items", the largest ids; "users_with_splits", the users with a test event;
            "users_train_only", all others; and the three arguments.

        Raises
        ------
        ValueError
            If there is neither a file nor histories, or an argument is out of range.
        """
        if not self.filename and not len(self._histories.items):
            raise ValueError("Filename is required: give SASRecDataSet a filename")
        if self.filename != self._source:
            SASRecDataSet.__init__(self, self.filename, self.col_sep)
        super().split(valid_size, test_size, min_interactions)
        with_splits = len(self.users_with("test"))
        if verbose:
            print("Split complete:")
            print(f"  Total users: {self.usernum}")
            print(f"  Total items: {self.itemnum}")
            print(f"  Users with train/valid/test: {with_splits}")
            print(f"  Users with train only: {self.usernum - with_splits}")
            print(f"  Valid size per user: {valid_size}")
            print(f"  Test size per user: {test_size}")
        return {
            "num_users": self.usernum,
            "num_items": self.itemnum,
            "users_with_splits": with_splits,
            "users_train_only": self.usernum - with_splits,
            "valid_size": valid_size,
            "test_size": test_size,
            "min_interactions": min_interactions,
        }


def warn_of_ignored(kind: type, names: Collection[str]) -> None:
    """Warn that keywords, if there are any, have no effect, which recommenders does not say."""
    if names:
        warnings.warn(
            f"{kind.__name__} ignores {', '.join(sorted(names))}, as recommenders does",
            stacklevel=3,
        )


def as_dataset(given: Any) -> data.SASRecDataSet:
    """Make a data set of any object with the attributes that recommenders reads from one."""
    if isinstance(given, data.SASRecDataSet):
        return given
    dataset = SASRecDataSet()
    for name in ("usernum", "itemnum", "user_train", "user_valid", "user_test"):
        setattr(dataset, name, getattr(given, name, {}))
    return dataset
