"""Checks that a data set has what a model reads: its numbers of users and items, or raw ids by which to translate
others, and times of events.
"""

from __future__ import annotations

from typing import Any

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.data.histories import IntArray
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.recommender import SequentialRecommender


def reads_times(model: Any) -> bool:
    """Whether a model's scores depend on the times of events. Those of a class of the user's own do not."""
    return getattr(getattr(model, "config", None), "time_bias", False)


def times_for(model: object, at: IntArray | None, source: str) -> IntArray | None:
    """Return the times at which next items are asked for if the model reads any, and None for another model.

    A ValueError says that the `source`, such as "dataset", has no times.
    """
    if not reads_times(model):
        return None
    if at is None:
        raise ValueError(f"{source} must have times of events, because the model has time_bias")
    return at


def check_is_dataset(dataset: Any) -> None:
    """Raise a TypeError that says where data sets come from, unless this is one."""
    if not isinstance(dataset, SASRecDataSet):
        raise TypeError(
            f"dataset must be a SASRecDataSet, such as Interactions.to_dataset() returns, "
            f"got {type(dataset).__name__}"
        )


def in_ids_of(model: SequentialRecommender, dataset: SASRecDataSet) -> SASRecDataSet:
    """Return a data set with its users and items numbered as the model's: itself if it is numbered so already.

    Evaluations call this. Training, recommending and rankings of candidates refuse a data set that would have to be
    renumbered, because samplers and candidates were made from its numbers. If model and data set both have raw ids,
    these decide. A model that keeps no raw ids knows the digest of those it was trained on. If only one of the two had
    raw ids, the events must be those of the training. If neither had, numbers are the ids.

    Raises
    ------
    TypeError
        If it is no `SASRecDataSet`.
    ValueError
        If the model does not know an item or user, has no vector for one, or the ids cannot be compared; names the
        file, if the data set is from one.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> model = SASREC(item_num=480, seq_max_len=8, embedding_dim=4, conv_dims=[4, 4])
    >>> in_ids_of(model, data) is data  # neither has raw ids
    True
    """
    check_is_dataset(dataset)
    name = dataset.filename or "dataset"
    user_num: int | None = getattr(model, "user_num", None)  # SASREC has no users
    known: KnownHistories | None = getattr(model, "known", None)  # nor has a model of another class
    if known is not None and (dataset.user_ids, dataset.item_ids) != (None, None):
        dataset = known.translate(dataset, new_users=user_num is None)
    else:
        _check_digests(model, dataset)
    for noun, largest, size in (
        ("item", dataset.itemnum, model.item_num),
        ("user", dataset.usernum, user_num),
    ):
        if size is not None and largest > size:
            raise ValueError(
                f"{name} has {noun} {largest}, the model knows {noun}s 1..{size} ({noun}_num={size})"
            )
    return dataset


def check_ids_of(model: SequentialRecommender, dataset: SASRecDataSet) -> None:
    """Raise a ValueError as `in_ids_of` does, or if users or items of the data set would have to be renumbered."""
    if in_ids_of(model, dataset) is not dataset:
        raise ValueError(
            f"{dataset.filename or 'dataset'} uses a different numbering of users and items from the model: pass what "
            f"ssept_ext.network.in_ids_of(model, dataset) returns, and make samplers and candidates from it"
        )


def _check_digests(model: SequentialRecommender, dataset: SASRecDataSet) -> None:
    """Check a data set by what its model knows of the training, where raw ids cannot be compared."""
    known: KnownHistories | None = getattr(model, "known", None)
    trained_on: Fingerprint | None = getattr(model, "trained_on", None)
    if trained_on is None:  # not trained, or saved by a version that kept no digests
        stored = known and known.histories
        if stored and stored.digest() != dataset.histories("all").digest():
            raise ValueError(
                f"{dataset.filename or 'dataset'} is not the data whose raw ids the model knows, {_REMEDY}"
            )
        return
    if known is None and (trained_on.item_ids is None) == (dataset.item_ids is None):
        pairs = [(trained_on.item_ids, dataset.item_ids)]
        if hasattr(model, "user_num"):
            pairs.append((trained_on.user_ids, dataset.user_ids))
        same = all(ids is None or ids.digest == expected for expected, ids in pairs)
    else:
        same = trained_on.histories == dataset.histories("all").digest()
    if not same:
        found = Fingerprint.of(dataset)
        raise ValueError(f"the model belongs to {trained_on.against(found)}, {_REMEDY}")


_REMEDY = (
    "which can be told apart but not translated: both need raw ids, as `fit`, `ssept prepare` and "
    "`Interactions.to_dataset` keep them (dataset.user_ids and dataset.item_ids)"
)
