"""A sampler of a few short histories."""

import numpy as np

from ssept_ext import WarpSampler
from ssept_ext.data.histories import Histories

NUM_ITEMS = 30
HISTORIES = {
    1: [4, 9, 2, 7, 30, 1, 4],  # meets item 4 twice
    2: [5],  # never drawn
    3: [8, 6],
    6: [11, 12, 13, 14],  # no users 4 and 5
    8: [],
    9: list(range(1, 29)),  # all but 29 and 30
}


def make(histories=HISTORIES, num_items=NUM_ITEMS, **arguments):
    arguments = {"batch_size": 16, "maxlen": 5, "seed": 7, **arguments}
    return WarpSampler(histories, max(histories), num_items, **arguments)


def timed(histories=HISTORIES):
    """As arrays, where event number i of user u, counted from 0, is of time 100 * u + i."""
    times = [100 * user + i for user, items in histories.items() for i in range(len(items))]
    return Histories.from_mapping(histories)._replace(times=np.array(times))


def make_timed(histories=HISTORIES, num_items=NUM_ITEMS, **arguments):
    arguments = {"batch_size": 16, "maxlen": 5, "seed": 7, "with_times": True, **arguments}
    return WarpSampler(timed(histories), max(histories), num_items, **arguments)


def assert_equal_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
