"""Rankings that need no training, and that a model should beat."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.evaluation.candidates import check_items
from ssept_ext.network.identity import check_is_dataset
from ssept_ext.utils.checks import check_at_least
from ssept_ext.utils.options import POSITIVE, Range, check_number

_SECONDS_OF_A_DAY = 86_400

_PAIRS_AT_A_TIME = 1 << 24
"""Pairs of events of one user that are counted together, of which each takes some 50 bytes."""


class Popularity:
    """The items with the most training events, or the most recent ones, the same for all users.

    Examples
    --------
    >>> from ssept_ext.evaluation import evaluate_full
    >>> data = SASRecDataSet(histories={1: [1, 1, 2, 1], 2: [1, 3, 2, 1], 3: [1, 2, 3, 2]})
    >>> evaluate_full(Popularity(data), data, ks=[1], exclude_seen=False).hr[1]
    0.6666666666666666
    """

    def __init__(
        self,
        dataset: SASRecDataSet,
        *,
        last_share: float | None = None,
        last_days: float | None = None,
    ) -> None:
        """Count the training events of each item.

        Parameters
        ----------
        last_share
            Count only this share of the training events, the latest ones; events at one time stay together.
        last_days
            Count only the training events of the last days before the last one, if times are in seconds.

        Raises
        ------
        ValueError
            If both are given, one is out of range, or the data have no times, which these need.
        """
        check_is_dataset(dataset)
        train = dataset.histories("train")
        counts = self._counts(train.items, dataset.itemnum)
        if last_share is not None or last_days is not None:
            recent = train.items[_is_recent(train.times, last_share, last_days)]
            # Items that were equally popular lately are ordered by all their events.
            counts = self._counts(recent, dataset.itemnum) + counts / (counts.max() + 1)
        self._scores = torch.from_numpy(counts)

    @staticmethod
    def _counts(items: IntArray, num_items: int) -> NDArray[np.float64]:
        return np.bincount(items, minlength=num_items + 1).astype(np.float64)

    def score_items(self, histories: Histories) -> Tensor:
        """As `ItemScorer.score_items`."""
        return self._scores.expand(len(histories.users), -1)


class ItemNeighbours:
    """The items nearest to those of the user's last events, by the cosine of who has them: item-to-item neighbours.

    The similarity of two items is the number of users who have both in their training events, over the root of the
    product of the numbers of users who have each (Sarwar et al., WWW 2001). The score of an item is the sum of its
    similarities to the user's last events, of those of which it is among the nearest neighbours.

    Examples
    --------
    >>> from ssept_ext.evaluation import evaluate_full
    >>> data = SASRecDataSet(histories={1: [1, 2, 5, 6], 2: [1, 2, 5, 6], 3: [4, 3, 1, 2], 4: [3, 4, 5, 6]})
    >>> evaluate_full(ItemNeighbours(data), data, ks=[1], split="valid").num_users
    4
    """

    def __init__(
        self, dataset: SASRecDataSet, *, num_neighbours: int = 100, last_events: int = 5
    ) -> None:
        """Find the neighbours of all items.

        Time grows with the sum of the squared lengths of the training histories. Memory is 12 bytes for each neighbour
        of each item.

        Parameters
        ----------
        num_neighbours
            Nearest neighbours of each item that count, at least 1.
        last_events
            Number of a user's last events that count, at least 1.

        Raises
        ------
        ValueError
            If an argument is out of range.
        """
        check_is_dataset(dataset)
        self._num_items = dataset.itemnum
        self._last_events = check_at_least("last_events", last_events, 1)
        most = min(check_at_least("num_neighbours", num_neighbours, 1), max(self._num_items - 1, 1))
        self._neighbours, self._similarities = _nearest(
            dataset.histories("train", with_times=False), self._num_items, most
        )

    def score_items(self, histories: Histories) -> Tensor:
        """As `ItemScorer.score_items`."""
        lengths = np.diff(histories.offsets)
        newest = histories.between(np.maximum(lengths - self._last_events, 0), lengths)
        check_items(newest, self._num_items)
        shape = len(lengths), self._num_items + 1
        row = np.repeat(np.arange(shape[0]), np.diff(newest.offsets))
        place = row[:, None] * shape[1] + self._neighbours[newest.items]
        similarities = self._similarities[newest.items]
        scores = np.bincount(place.ravel(), similarities.ravel(), shape[0] * shape[1])
        return torch.from_numpy(scores).view(shape)


def _is_recent(
    times: IntArray | None, share: float | None, days: float | None
) -> NDArray[np.bool_]:
    """Which training events are recent."""
    if share is not None and days is not None:
        raise ValueError("give either last_share or last_days, and not both")
    if times is None:
        raise ValueError(
            "recent popularity needs times of events: a third column, the .safetensors of ssept prepare, or "
            "the timestamp of Interactions"
        )
    if days is not None:
        days = check_number("last_days", days, float, POSITIVE)
        since = times.max() - days * _SECONDS_OF_A_DAY
    else:
        share = check_number("last_share", share, float, Range(0, 1, open_low=True))
        place = min(math.ceil(len(times) * (1 - share)), len(times) - 1)
        since = np.partition(times, place)[place]
    recent: NDArray[np.bool_] = times >= since
    return recent


def _nearest(
    train: Histories, num_items: int, num_neighbours: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Find the nearest neighbours of each item, (I + 1, N), and their similarities, 0 beyond the last one.

    Equally near ones are ordered by number.
    """
    num_users = len(train.users)
    row = np.repeat(np.arange(num_users), np.diff(train.offsets))
    item, user = np.divmod(np.unique(train.items * num_users + row), num_users)  # ordered by item
    by_user = _ones(user, item, (num_users, num_items + 1)).coalesce()
    counts = np.bincount(item, minlength=num_items + 1)
    starts = np.append(0, counts.cumsum())
    num_pairs = np.append(0, np.bincount(user, minlength=num_users)[user].cumsum())[starts]
    neighbours = np.zeros((num_items + 1, num_neighbours), np.int32)
    similarities = np.zeros(neighbours.shape)
    first = 0
    while first <= num_items:
        limit = num_pairs[first] + _PAIRS_AT_A_TIME
        end = max(int(np.searchsorted(num_pairs, limit, "right")) - 1, first + 1)
        block = slice(starts[first], starts[end])
        of_block = _ones(item[block] - first, user[block], (end - first, num_users))
        with warnings.catch_warnings():  # torch's product has one of a format that it uses inside
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            together = torch.sparse.mm(of_block, by_user).coalesce()
        one, other = together.indices().numpy()
        one += first
        similarity = together.values().numpy() / np.sqrt(counts[one] * counts[other])
        similarity[one == other] = 0
        order = np.lexsort((other, -similarity, one))
        one, other, similarity = one[order], other[order], similarity[order]
        place = np.arange(len(one)) - np.searchsorted(one, one)
        kept = (place < num_neighbours) & (similarity > 0)
        neighbours[one[kept], place[kept]] = other[kept]
        similarities[one[kept], place[kept]] = similarity[kept]
        first = end
    return neighbours, similarities


def _ones(rows: IntArray, columns: IntArray, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix of ones at these distinct places."""
    places = torch.from_numpy(np.stack([rows, columns]))
    ones = torch.ones(len(rows), dtype=torch.float64)
    return torch.sparse_coo_tensor(places, ones, shape, check_invariants=False)
