"""Histories of users, checked and split into training, validation and test items."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ssept_ext.data.histories import to_csr
from ssept_ext.data.text import group_by_user, read_events


class SASRecDataSet:
    """Histories of users, oldest event first, and their leave-one-out split.

    The interface of recommenders' `SASRecDataSet`, except that the file is read and split when the
    data set is made, so that a bad file fails here and no attribute is ever empty because `split`
    is still to come. Ids start at 1 and need not be consecutive: users without events have no entry
    in the dicts.

    Attributes
    ----------
    User : dict[int, list[int]], user id to all item ids in time order.
    Items : set[int], the items of all histories.
    usernum, itemnum : int, the largest user and item id; tables need one row more.
    user_train, user_valid, user_test : dict[int, list[int]] with the same keys as `User`. The last
        event is the test item and the one before it the validation item; users with fewer than 3
        events train only, with empty lists in the other two.
    filename, col_sep : as given.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        col_sep: str | None = " ",
        *,
        histories: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Read `filename`, or take `histories`.

        Parameters
        ----------
        filename : lines `user item`, each user's in time order, or `user item time`, sorted here by
            time (int or float; events of the same time stay in the order of the file). Read with
            gzip if the name ends in .gz. Blank lines are skipped.
        col_sep : what stands between columns, one or more characters; None for any run of
            whitespace.
        histories : user id to item ids in time order, instead of a file.

        Raises
        ------
        ValueError : a malformed line, with file name, line number and text; ids that are not
            integers from 1 to `MAX_ID`; a file or `histories` without events.
        """
        if (filename is None) == (histories is None):
            raise ValueError("give either filename or histories, and not both")
        if col_sep == "":
            raise ValueError(
                "col_sep must be at least one character, or None for whitespace, got ''"
            )
        self.filename = filename
        self.col_sep = col_sep
        if histories is None:
            assert filename is not None
            users, offsets, items = group_by_user(*read_events(filename, col_sep))
        else:
            users, offsets, items = to_csr(histories)
            if not len(items):
                raise ValueError(f"histories of {len(users)} users hold no events")
        self.usernum = int(users.max())
        self.itemnum = int(items.max())
        bounds, events = offsets.tolist(), items.tolist()
        self.Items: set[int] = set(events)
        self.User: dict[int, list[int]] = {
            user: events[bounds[row] : bounds[row + 1]] for row, user in enumerate(users.tolist())
        }
        self.split()

    def split(self) -> None:
        """Make `user_train`, `user_valid` and `user_test` from `User`.

        The constructor calls it; call it again only after changing `User`.
        """
        self.user_train: dict[int, list[int]] = {}
        self.user_valid: dict[int, list[int]] = {}
        self.user_test: dict[int, list[int]] = {}
        for user, items in self.User.items():
            cut = len(items) - 2 if len(items) >= 3 else len(items)
            self.user_train[user] = items[:cut]
            self.user_valid[user] = items[cut : cut + 1]
            self.user_test[user] = items[cut + 1 :]
