"""Small interactions, and what they hold."""


def histories(interactions):
    """Raw user id to raw item ids in order."""
    users, offsets, items = interactions.to_histories()
    return {
        user: interactions.item_ids.decode(items[start:stop]).tolist()
        for user, start, stop in zip(
            interactions.user_ids.decode(users).tolist(), offsets[:-1], offsets[1:], strict=True
        )
    }
