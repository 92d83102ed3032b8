"""Synthetic data sets."""

from __future__ import annotations

import numpy as np

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import MAX_ID, Histories, to_offsets
from ssept_ext.utils.checks import check_at_least


def synthetic(
    num_users: int = 1000,
    num_clusters: int = 10,
    num_tastes: int = 6,
    items_per_taste: int = 8,
    min_events: int = 80,
    max_events: int = 160,
    regularity: float = 0.8,
    loyalty: float = 0.6,
    seed: int = 0,
) -> SASRecDataSet:
    """Make histories whose next item depends on both the last items and the user.

    Items are divided into clusters, and the items of a cluster into tastes, with a Zipf distribution of
    popularity. Users move from cluster to cluster, mostly along one cycle that all users share, and mostly choose
    items of their own taste, which never changes. Two events show the position on the cycle but say little about
    the taste, which a model with user embeddings learns from all of the user's events. So with a short window
    (`seq_max_len=2`) and training windows from whole histories (`window_sampling_prob=1`), SSEPT beats SASREC, and
    both beat popularity. A longer window shows the taste to SASREC too.

    Parameters
    ----------
    num_users, num_clusters, num_tastes, items_per_taste
        Sizes, at least 1, and at least 2 clusters. There are `num_clusters * num_tastes * items_per_taste` items.
    min_events, max_events
        Lengths of histories are uniform from `min_events`, at least 3, to `max_events`.
    regularity
        Probability that the next cluster is the next one of the cycle instead of a random one.
    loyalty
        Probability that the item is of the user's taste instead of a random one.
    seed
        Seed of the random numbers.

    Raises
    ------
    ValueError
        If an argument is out of range; names it.

    Examples
    --------
    >>> data = synthetic(num_users=20)
    >>> data.usernum, data.itemnum <= 10 * 6 * 8
    (20, True)
    """
    sizes = {
        "num_users": (num_users, 1),
        "num_clusters": (num_clusters, 2),
        "num_tastes": (num_tastes, 1),
        "items_per_taste": (items_per_taste, 1),
        "min_events": (min_events, 3),
        "max_events": (max_events, min_events),
        "seed": (seed, 0),
    }
    for name, (size, smallest) in sizes.items():
        check_at_least(name, size, smallest)
    check_at_least("num_users * max_events", num_users * max_events, 3, MAX_ID)
    num_items = num_clusters * num_tastes * items_per_taste
    check_at_least("num_clusters * num_tastes * items_per_taste", num_items, 2, MAX_ID)
    for name, probability in (("regularity", regularity), ("loyalty", loyalty)):
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {probability}")

    rng = np.random.default_rng(seed)
    shape = (num_users, max_events)
    lengths = rng.integers(min_events, max_events + 1, num_users)
    # A step of 1 follows the cycle; the sum of the steps is the position on it.
    steps = np.where(rng.random(shape) < regularity, 1, rng.integers(num_clusters, size=shape))
    steps[:, 0] = rng.integers(num_clusters, size=num_users)
    clusters = steps.cumsum(1) % num_clusters
    loyal = rng.random(shape) < loyalty
    own = rng.integers(num_tastes, size=(num_users, 1))
    tastes = np.where(loyal, own, rng.integers(num_tastes, size=shape))
    popularity = 1 / np.arange(1, items_per_taste + 1)
    places = rng.choice(items_per_taste, shape, p=popularity / popularity.sum())

    number = (clusters * num_tastes + tastes) * items_per_taste + places
    ids = 1 + rng.permutation(num_items)
    taken = np.arange(max_events) < lengths[:, None]
    histories = Histories(np.arange(1, num_users + 1), to_offsets(lengths), ids[number][taken])
    return SASRecDataSet(histories=histories)
