"""Draws the users of an evaluation and the candidates to rank for each."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, join
from ssept_ext.network.identity import check_is_dataset
from ssept_ext.sampling.negatives import negative_table
from ssept_ext.utils.checks import check_at_least, check_one_of
from ssept_ext.utils.files import replace_file
from ssept_ext.utils.philox import philox_key

Split = Literal["valid", "test"]
"""Which held-out event to find."""


Exclude = Literal["train", "all"]
"""Which of a user's items are never negatives, besides the one to find: those in the training history, or all."""


MAX_USERS = 10_000
"""Of more users, a random sample of this size is evaluated by default, as in recommenders."""


MAX_NEGATIVES = 1_000_000
"""Largest number of negatives for a user."""


@dataclass(frozen=True)
class EvaluationCandidates:
    """The input history and the items to rank, for each user of an evaluation.

    Made by `draw_candidates`; different models can be compared on the same candidates.

    Examples
    --------
    >>> import tempfile
    >>> from ssept_ext.data.synthetic import synthetic
    >>> data = synthetic(num_users=20)
    >>> drawn = draw_candidates(data, "test", num_neg_test=5, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     drawn.save(f"{folder}/candidates.npz")
    ...     loaded = EvaluationCandidates.load(f"{folder}/candidates.npz", data)
    >>> bool((loaded.candidates == drawn.candidates).all())
    True
    """

    split: Split
    """Which held-out event is to be found."""
    inputs: Histories
    """The history of each user that the model sees."""
    candidates: IntArray
    """(n, 1 + num_neg_test) item ids; column 0 is the held-out item."""
    dataset: SASRecDataSet | None = None
    """What they were drawn from, by which `rank_candidates` checks that the numbers are the model's."""
    at: IntArray | None = None
    """(n,) int64 time of each held-out event, at which the model is asked for it; None if times are not known."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write users and candidates, but not the histories, to a compressed .npz file without pickle."""
        arrays = {
            "format": np.array(_FORMAT),
            "split": np.array(self.split),
            "users": self.inputs.users,
            "candidates": self.candidates,
        }

        def write(part: Path) -> None:
            with part.open("wb") as file:  # given a name, NumPy would append .npz to it
                np.savez_compressed(file, allow_pickle=False, **arrays)

        replace_file(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: SASRecDataSet) -> EvaluationCandidates:
        """Read a file that `save` wrote, for the data set that the candidates were drawn from.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file, or does not fit `dataset`, because a user does not have this held-out item
            or an item is outside 1..itemnum; names the file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                version, split = file["format"].item(), file["split"].item()
                users, candidates = file["users"], file["candidates"]
        except _NOT_OURS as error:
            raise ValueError(f"{path} is not a file of evaluation candidates: {error}") from error
        if version != _FORMAT or split not in get_args(Split):
            raise ValueError(
                f"{path} has format {version!r} and split {split!r}; format {_FORMAT!r} and "
                f"one of {get_args(Split)} can be read"
            )
        integers = users.dtype.kind == candidates.dtype.kind == "i"
        shaped = users.ndim == 1 and candidates.ndim == 2 and candidates.shape[1] > 1
        if not (integers and shaped and 0 < len(users) == len(candidates)):
            raise ValueError(
                f"{path}: users {users.shape} {users.dtype} and candidates {candidates.shape} "
                f"{candidates.dtype} must be integers of shapes (n,) and (n, 1 + negatives), n >= 1"
            )
        outside = candidates[(candidates < 1) | (candidates > dataset.itemnum)]
        if outside.size:
            raise ValueError(
                f"{path}: candidate {outside[0]} is outside 1..{dataset.itemnum} of dataset"
            )
        trained = np.diff(dataset.histories("train", users).offsets) > 0
        held_out = dataset.histories(split, users)
        wrong = ~trained | (held_out.oldest() != candidates[:, 0])
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{path} is of other data: the {split} item of user {users[row]} is "
                f"{candidates[row, 0]} there, {held_out.part(slice(row, row + 1)).items.tolist()} in "
                f"dataset"
            )
        inputs = input_histories(dataset, users, split)
        at = times_asked(inputs, held_out)
        return cls(split, inputs, candidates.astype(np.int64), dataset, at)


_FORMAT = "ssept_ext trials 1"
_NOT_OURS = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError)


def draw_candidates(
    dataset: SASRecDataSet,
    split: Split,
    *,
    num_neg_test: int,
    seed: int | None,
    exclude: Exclude = "train",
    max_users: int | None = MAX_USERS,
) -> EvaluationCandidates:
    """Draw the users and negatives of an evaluation; with equal seeds, the same for every model.

    As in recommenders, users need a training event and a held-out item; of more than `max_users` such users, a random
    sample is drawn. The input is the training history, followed by the validation item if `split` is "test". Negatives
    are drawn uniformly, with replacement, from the items outside the *training* history. Unlike in recommenders, the
    item to find is never among them. The user's other held-out item may be; `exclude="all"` excludes it, too. Users who
    have seen every item are left out, with a warning. Another warning says how many users have fewer than
    `num_neg_test` items to draw from, so that their negatives repeat.

    Parameters
    ----------
    num_neg_test
        Negatives per user.
    seed
        Any integer from 0; None for a fresh one.
    exclude
        Which of a user's items, besides the one to find, are never negatives.
    max_users
        Largest number of users, 10,000 as in recommenders; None for all.

    Raises
    ------
    ValueError
        If an argument is out of range, no user can be evaluated, or an item id is outside 1..itemnum.
    TypeError
        If `dataset` is no `SASRecDataSet`.

    Examples
    --------
    >>> from ssept_ext.data.synthetic import synthetic
    >>> drawn = draw_candidates(synthetic(num_users=20), "test", num_neg_test=5, seed=0)
    >>> drawn.candidates.shape
    (20, 6)
    """
    check_one_of("exclude", exclude, get_args(Exclude))
    check_one_of("split", split, get_args(Split))
    num_neg_test = check_at_least("num_neg_test", num_neg_test, 1, MAX_NEGATIVES)
    if seed is not None:
        seed = check_at_least("seed", seed, 0, math.inf)
    rng = np.random.default_rng(seed)
    users = measurable_users(dataset, split)
    limit = len(users) if max_users is None else check_at_least("max_users", max_users, 1)
    if limit < len(users):
        users = np.sort(rng.choice(users, limit, replace=False))

    train, valid = dataset.histories("train", users), dataset.histories("valid", users)
    test = dataset.histories("test", users)
    inputs, held_out = (train, valid) if split == "valid" else (join(train, valid), test)
    everything = join(train, valid, test)
    check_items(everything, dataset.itemnum)
    seen = everything if exclude == "all" else train
    answers, table = held_out.oldest(), negative_table(seen, dataset.itemnum)

    num_left = table.unseen_weight - 1  # without the answer, unless it is not among them anyway
    row = np.repeat(np.arange(len(users)), np.diff(seen.offsets))
    num_left[row[seen.items == answers[row]]] += 1
    _warn_of_few_items(num_left, dataset.itemnum, num_neg_test)
    if not num_left.all():
        users, answers = users[num_left > 0], answers[num_left > 0]
        inputs, seen, held_out = inputs.of(users), seen.of(users), held_out.of(users)
        table = negative_table(seen, dataset.itemnum)

    negatives = table.draw(philox_key(seed), num_neg_test)
    # Only answers are drawn again: all other negatives of a seed stay what they have always been.
    row, column = (negatives == answers[:, None]).nonzero()
    clashes = Histories(users[row], np.arange(len(row) + 1), answers[row])
    allowed = negative_table(join(seen.of(users[row]), clashes), dataset.itemnum)
    negatives[row, column] = allowed.at(np.arange(len(row)), rng.random(len(row)))
    candidates = np.concatenate([answers[:, None], negatives], 1)
    return EvaluationCandidates(split, inputs, candidates, dataset, times_asked(inputs, held_out))


def times_asked(inputs: Histories, held_out: Histories) -> IntArray | None:
    """(n,) time of each held-out event, at which a model is asked for it; None unless all times are known."""
    return None if inputs.times is None else held_out.oldest_times()


def _warn_of_few_items(num_left: IntArray, itemnum: int, num_neg_test: int) -> None:
    some = num_left[num_left > 0]
    num_users, num_few = len(num_left), np.count_nonzero(some < num_neg_test)
    if not len(some):
        raise ValueError(
            f"no user can be evaluated: all {num_users} have seen all {itemnum} items that negatives "
            f"are drawn from"
        )
    if len(some) < num_users:
        warnings.warn(
            f"{num_users - len(some)} of {num_users} users have seen all {itemnum} items that negatives "
            f"are drawn from, and are left out",
            stacklevel=3,
        )
    if num_few:
        warnings.warn(
            f"num_neg_test is {num_neg_test}, but {num_few} of {num_users} users have fewer items to draw "
            f"from (at least {some.min()}, of {itemnum}): their negatives repeat, so that one item above "
            f"the answer counts several times. evaluate_full counts each item once",
            stacklevel=3,
        )


def input_histories(dataset: SASRecDataSet, users: IntArray, split: Split) -> Histories:
    """Return the users' input: the training history and, if `split` is "test", the validation item."""
    train = dataset.histories("train", users)
    return train if split == "valid" else join(train, dataset.histories("valid", users))


def measurable_users(dataset: SASRecDataSet, split: Split) -> IntArray:
    """Find the users with a training event and a held-out item.

    Returns
    -------
    IntArray
        The user ids, in ascending order.

    Raises
    ------
    ValueError
        If there are none.
    """
    check_is_dataset(dataset)
    users = np.intersect1d(
        dataset.users_with("train"), dataset.users_with(split), assume_unique=True
    )
    users = users[users <= dataset.usernum]
    if not len(users):
        raise ValueError(
            f"dataset has no user with a training event and a {split} item (of {dataset.usernum} "
            f"users): items are held out of histories of three or more events, and only with hold_out"
        )
    return users


def check_items(histories: Histories, itemnum: int) -> None:
    """Raise a ValueError if an item id is above `itemnum`; names the item and the user."""
    if histories.items.max() > itemnum:
        event = histories.items.argmax()
        row = np.searchsorted(histories.offsets, event, side="right") - 1
        raise ValueError(
            f"items must be in 1..{itemnum} (dataset.itemnum), got {histories.items[event]} in the "
            f"history of user {histories.users[row]}"
        )
