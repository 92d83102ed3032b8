"""Small interactions, and what they must hold."""

import pandas as pd

from ssept_ext.data.interactions import Interactions

COLUMNS = {
    "user": ["bob", "ann", "bob", "ann", "bob"],
    "item": [70, 50, 60, 70, 50],
    "timestamp": [3, 9, 1, 2, 3],
}


def of_rows(*rows, **arguments):
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"][: len(rows[0])])
    return Interactions.from_pandas(frame, **arguments)


def histories(interactions):
    """Raw user id to raw item ids in order."""
    users, offsets, items, _ = interactions.to_histories()
    return {
        user: interactions.item_ids.decode(items[start:stop]).tolist()
        for user, start, stop in zip(
            interactions.user_ids.decode(users).tolist(), offsets[:-1], offsets[1:], strict=True
        )
    }


def sorted_histories(events):
    """The items of each user in the order of times, or of events where times are None."""
    found = {}
    for user, item, _ in sorted(events, key=lambda event: 0 if event[2] is None else event[2]):
        found.setdefault(user, []).append(item)
    return found
