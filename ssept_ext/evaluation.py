"""Ranks of held-out items: among sampled negatives, as recommenders measures, and in the whole catalogue."""

from __future__ import annotations

import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssept_ext import distributed
from ssept_ext.data import Histories, IntArray, SASRecDataSet, to_csr
from ssept_ext.files import replace_file
from ssept_ext.ranking import (
    USERS_AT_A_TIME,
    SeenItems,
    TopK,
    check_finite,
    encode_groups,
    last_events,
    score_blocks,
    scoring,
)
from ssept_ext.unseen import philox_key, to_offsets, unseen_items

if TYPE_CHECKING:
    from ssept_ext.model import SASREC

Split = Literal["valid", "test"]
Exclude = Literal["train", "all"]

CUTOFF = 10
MAX_USERS = 10_000


@dataclass(frozen=True)
class Trials:
    """What a measurement asks: for each user the events to look at and the items to rank."""

    split: Split
    """Which of the user's events is the one to find."""
    inputs: Histories
    candidates: IntArray
    """(n, 1 + num_neg_test) item ids; column 0 is the held-out item, the one to find."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write users and candidates, not the histories, to a compressed .npz file without pickle."""
        arrays = {
            "format": np.array(_TRIALS_FORMAT),
            "split": np.array(self.split),
            "users": self.inputs.users,
            "candidates": self.candidates,
        }

        def write(part: Path) -> None:
            with part.open("wb") as file:  # given a name, NumPy would append .npz to it
                np.savez_compressed(file, allow_pickle=False, **arrays)

        replace_file(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: SASRecDataSet) -> Trials:
        """Read what `save` wrote, for the data set that the candidates were drawn from.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no such file, or does not fit `dataset`: a user without this held-out item, an item
            outside 1..itemnum. Names the file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                version, split = file["format"].item(), file["split"].item()
                users, candidates = file["users"], file["candidates"]
        except (
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            AttributeError,
        ) as error:
            raise ValueError(f"{path} holds no evaluation trials: {error}") from error
        if version != _TRIALS_FORMAT or split not in get_args(Split):
            raise ValueError(
                f"{path} has format {version!r} and split {split!r}; format {_TRIALS_FORMAT!r} and "
                f"one of {get_args(Split)} can be read"
            )
        integers = users.dtype.kind == candidates.dtype.kind == "i"
        shaped = users.ndim == 1 and candidates.ndim == 2 and candidates.shape[1] > 1
        if not (integers and shaped and 0 < len(users) == len(candidates)):
            raise ValueError(
                f"{path}: users {users.shape} {users.dtype} and candidates {candidates.shape} "
                f"{candidates.dtype} must be integers of shapes (n,) and (n, 1 + negatives), n >= 1"
            )
        if candidates.min() < 1 or candidates.max() > dataset.itemnum:
            worst = candidates.min() if candidates.min() < 1 else candidates.max()
            raise ValueError(
                f"{path}: candidate {worst} is outside 1..{dataset.itemnum} of dataset"
            )
        held_out = dataset.user_valid if split == "valid" else dataset.user_test
        for user, target in zip(users.tolist(), candidates[:, 0].tolist(), strict=True):
            if not dataset.user_train.get(user) or held_out.get(user, [])[:1] != [target]:
                raise ValueError(
                    f"{path} is of other data: the {split} item of user {user} is {target} there, "
                    f"{held_out.get(user, [])} in dataset"
                )
        inputs = _inputs(dataset, users.tolist(), split)
        return cls(split, inputs, candidates.astype(np.int64))


_TRIALS_FORMAT = "ssept_ext trials 1"


def draw_trials(
    dataset: SASRecDataSet,
    split: Split,
    *,
    num_neg_test: int,
    seed: int | None,
    exclude: Exclude = "train",
) -> Trials:
    """Draw the users and negatives of one measurement: for every model the same, given the seed.

    As recommenders: users with a training event and a held-out item (of more than 10,000 of them a
    random 10,000); the input is the training history, for the test item followed by the validation
    item; negatives are uniform with replacement over the items outside the *training* history, so
    a user's other held-out item, and even the one to find, may be among them. `exclude="all"`
    keeps both out.

    Raises
    ------
    ValueError
        If `exclude` or `num_neg_test` is wrong, no user can be measured, an item id is outside
        1..itemnum, or a user has no item left to draw; names the user.
    """
    if exclude not in ("train", "all"):
        raise ValueError(f'exclude must be "train" or "all", got {exclude!r}')
    check_at_least("num_neg_test", num_neg_test, 1)
    rng = np.random.default_rng(seed)
    train, valid, test = dataset.user_train, dataset.user_valid, dataset.user_test
    users = measurable_users(dataset, split)
    if len(users) > MAX_USERS:
        users = sorted(rng.choice(users, MAX_USERS, replace=False).tolist())

    everything = to_csr({u: [*train[u], *valid[u], *test[u]] for u in users})
    _check_items(everything, dataset.itemnum)
    trained = _first_events(everything, [len(train[u]) for u in users])
    rated = everything if exclude == "all" else trained
    targets = np.array([(valid if split == "valid" else test)[u][0] for u in users], np.int64)
    negatives = unseen_items(rated, dataset.itemnum).draw(philox_key(seed), num_neg_test)
    inputs = trained
    if split == "test":
        inputs = _first_events(everything, [len(train[u]) + len(valid[u]) for u in users])
    return Trials(split, inputs, candidates=np.concatenate([targets[:, None], negatives], 1))


def _inputs(dataset: SASRecDataSet, users: Sequence[int], split: Split) -> Histories:
    """What a model sees of the users: the training history, for the test item the validation item too."""
    train, valid = dataset.user_train, dataset.user_valid
    return to_csr({u: train[u] if split == "valid" else [*train[u], *valid[u]] for u in users})


def _first_events(histories: Histories, counts: Sequence[int]) -> Histories:
    """The oldest `counts[r]` events of each row r."""
    offsets = to_offsets(np.array(counts, np.int64))
    event = np.arange(offsets[-1]) + np.repeat(histories.offsets[:-1] - offsets[:-1], counts)
    return Histories(histories.users, offsets, histories.items[event])


def measurable_users(dataset: SASRecDataSet, split: Split) -> list[int]:
    """Users with a training event and a held-out item, ascending; a ValueError if there is none."""
    held_out = dataset.user_valid if split == "valid" else dataset.user_test
    train = dataset.user_train
    users = [u for u in range(1, dataset.usernum + 1) if train.get(u) and held_out.get(u)]
    if not users:
        raise ValueError(
            f"dataset has no user with a training event and a {split} item (of {dataset.usernum} "
            f"users); has dataset.split() been called?"
        )
    return users


def _check_items(histories: Histories, itemnum: int) -> None:
    if histories.items.max() > itemnum:
        event = histories.items.argmax()
        row = np.searchsorted(histories.offsets, event, side="right") - 1
        raise ValueError(
            f"items must be in 1..{itemnum} (dataset.itemnum), got {histories.items[event]} in the "
            f"history of user {histories.users[row]}"
        )


def measure(model: SASREC, trials: Trials, eval_batch_size: int = 256) -> tuple[float, float]:
    """Let the model rank the candidates of `trials`; (NDCG@10, HR@10) averaged over the users.

    Where `torch.distributed` is initialised, so that all processes must call it, each ranks for some of
    the users, and all get the figures of one process. The model computes in evaluation mode and is left in
    the mode it was in.

    Raises
    ------
    ValueError
        If `eval_batch_size` is below 1, or a score is not finite (a NaN must never rank).
    """
    return ndcg_and_hr(_ranks(model, trials, eval_batch_size, 1)[:, 0])


def _ranks(model: SASREC, trials: Trials, eval_batch_size: int, n_repeats: int) -> Tensor:
    """(n, n_repeats) ranks of the held-out item, among one group of the negatives after the other."""
    check_at_least("eval_batch_size", eval_batch_size, 1)
    ranks = [torch.zeros(0, dtype=torch.int64, device=model.device)]
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    mine = distributed.share(len(trials.candidates), eval_batch_size)
    with scoring(model):
        for start in range(mine.start, mine.stop, eval_batch_size):
            rows = slice(start, min(start + eval_batch_size, mine.stop))
            batch = last_events(trials.inputs, rows, model.seq_max_len).to(model.device)
            candidates = torch.from_numpy(trials.candidates[rows]).to(model.device)
            scores = model.score(batch, candidates, user_part=False)
            finite &= scores.isfinite().all()
            groups = scores[:, 1:].view(len(scores), n_repeats, -1)
            of_first = scores[:, :1, None].expand(-1, n_repeats, 1)
            ranks.append(ranks_of_first(torch.cat([of_first, groups], 2).flatten(0, 1)))
    parts, all_finite = zip(
        *distributed.gather((torch.cat(ranks).cpu(), finite.cpu())), strict=True
    )
    check_finite(torch.stack(all_finite).all())
    return torch.cat(parts).view(-1, n_repeats)


def ranks_of_first(scores: Tensor) -> Tensor:
    """(B, C) scores -> (B,) how many other candidates score at least what candidate 0 does.

    Ties count against candidate 0, so constant scores rank it last. (recommenders' double argsort
    ranks it first then: HR = 1.)
    """
    return (scores[:, 1:] >= scores[:, :1]).sum(1)


def ndcg_and_hr(ranks: Tensor) -> tuple[float, float]:
    """(B,) ranks from 0 -> mean NDCG@10 and HR@10, with one relevant item per user."""
    hit = ranks < CUTOFF
    gain = hit / torch.log2(ranks.double() + 2)
    return gain.mean().item(), hit.double().mean().item()


def evaluate(
    model: SASREC,
    dataset: SASRecDataSet,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
) -> tuple[float, float]:
    """(NDCG@10, HR@10) of the test item among `model.num_neg_test` negatives; see `draw_trials`, `measure`.

    Equal seeds give equal users and negatives, whatever `eval_batch_size`; None draws new ones.

    Raises
    ------
    ValueError
        As `draw_trials`, `measure` and `check_dataset_fits`.
    """
    return _evaluate(model, dataset, "test", seed, eval_batch_size, exclude)


def evaluate_valid(
    model: SASREC,
    dataset: SASRecDataSet,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
) -> tuple[float, float]:
    """As `evaluate`, for the validation item."""
    return _evaluate(model, dataset, "valid", seed, eval_batch_size, exclude)


def _evaluate(
    model: SASREC,
    dataset: SASRecDataSet,
    split: Split,
    seed: int | None,
    eval_batch_size: int,
    exclude: Exclude,
) -> tuple[float, float]:
    check_dataset_fits(model, dataset)
    trials = draw_trials(
        dataset, split, num_neg_test=model.num_neg_test, seed=_same_seed(seed), exclude=exclude
    )
    return measure(model, trials, eval_batch_size)


def _same_seed(seed: int | None) -> int:
    """A seed that all processes have, a new one for None."""
    return distributed.from_first(lambda: secrets.randbits(63)) if seed is None else seed


@dataclass(frozen=True)
class RepeatedMetrics:
    """NDCG@10 and HR@10 over repeated draws of the negatives."""

    ndcg_mean: float
    ndcg_std: float
    """Standard deviation of one draw's NDCG@10 (divisor n_repeats - 1)."""
    hr_mean: float
    hr_std: float


def evaluate_repeated(
    model: SASREC,
    dataset: SASRecDataSet,
    n_repeats: int = 10,
    seed: int | None = None,
    eval_batch_size: int = 256,
    exclude: Exclude = "train",
    split: Split = "test",
) -> RepeatedMetrics:
    """Measure as `evaluate` does with `n_repeats` draws of the negatives: how much is the draw's luck?

    The users are the same in all repeats and are encoded once. The spread says nothing about other
    trainings or other users.

    Raises
    ------
    ValueError
        As `evaluate`, and if `n_repeats` is below 2.
    """
    check_at_least("n_repeats", n_repeats, 2)
    check_dataset_fits(model, dataset)
    num_negatives = n_repeats * model.num_neg_test
    trials = draw_trials(
        dataset, split, num_neg_test=num_negatives, seed=_same_seed(seed), exclude=exclude
    )
    ranks = _ranks(model, trials, eval_batch_size, n_repeats)
    ndcg, hr = np.array([ndcg_and_hr(repeat) for repeat in ranks.unbind(1)]).T
    return RepeatedMetrics(
        ndcg_mean=float(ndcg.mean()),
        ndcg_std=float(ndcg.std(ddof=1)),
        hr_mean=float(hr.mean()),
        hr_std=float(hr.std(ddof=1)),
    )


def evaluate_popularity(
    dataset: SASRecDataSet,
    seed: int | None = None,
    num_neg_test: int = 100,
    exclude: Exclude = "train",
    split: Split = "test",
) -> tuple[float, float]:
    """(NDCG@10, HR@10) of ranking by the number of training events; the floor a model must beat.

    Given the model's seed and `num_neg_test` it ranks the same candidates of the same users.

    Raises
    ------
    ValueError
        As `draw_trials`.
    """
    trials = draw_trials(dataset, split, num_neg_test=num_neg_test, seed=seed, exclude=exclude)
    events = to_csr(dataset.user_train).items
    popularity = np.bincount(events, minlength=dataset.itemnum + 1)
    return ndcg_and_hr(ranks_of_first(torch.from_numpy(popularity[trials.candidates])))


@dataclass(frozen=True)
class FullMetrics:
    """How a model ranks the held-out items among the whole catalogue, averaged over the users.

    With one relevant item a user: hit rate (equal to recall), NDCG and MAP at each k, where MAP@k
    is the reciprocal rank if within k, and MRR without a limit.
    """

    num_users: int
    hr: dict[int, float]
    ndcg: dict[int, float]
    map: dict[int, float]
    coverage: dict[int, float]
    """Share of all items that are among the k best of at least one user."""
    mrr: float


def evaluate_full(
    model: SASREC,
    dataset: SASRecDataSet,
    ks: Sequence[int] = (1, 5, 10, 20),
    exclude_seen: bool = True,
    split: Split = "test",
    eval_batch_size: int = 256,
) -> FullMetrics:
    """Rank all items for every user with a training event and a held-out item; no sampling.

    The input is the training history, for the test item followed by the validation item. The rank
    is the number of other items that score at least the held-out one: ties count against the model.
    Processes share the users as in `measure`.

    Parameters
    ----------
    ks : cut-offs
    exclude_seen : rank among the items that are not in the input, and the held-out one
    split : "test" or "valid"
    eval_batch_size : users that are encoded at a time

    Raises
    ------
    ValueError
        If an argument is out of range, no user can be measured, an item id is outside 1..itemnum, a
        score is not finite, or as `check_dataset_fits`.
    """
    if not len(ks):
        raise ValueError("ks must have at least one cut-off")
    for k in ks:
        check_at_least("each of ks", k, 1)
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    check_at_least("eval_batch_size", eval_batch_size, 1)
    check_dataset_fits(model, dataset)
    users = measurable_users(dataset, split)
    inputs = _inputs(dataset, users, split)
    target_of = dataset.user_valid if split == "valid" else dataset.user_test
    held_out = to_csr({u: target_of[u][:1] for u in users})
    for histories in (inputs, held_out):
        _check_items(histories, dataset.itemnum)

    mine = distributed.share(len(users), USERS_AT_A_TIME)
    inputs, held_out = (histories.part(mine) for histories in (inputs, held_out))
    num_best = min(max(ks), dataset.itemnum)
    ranks = [torch.zeros(0, dtype=torch.int64)]
    best = [torch.zeros(0, num_best, dtype=torch.int64)]
    with scoring(model):
        # The catalogue is the data set's: items the model alone knows are nobody's.
        item_weight = model.item_embedding_layer.weight[: dataset.itemnum + 1]
        for rows, queries, _ in encode_groups(model, inputs, eval_batch_size):
            seen = SeenItems(inputs, rows, model.device) if exclude_seen else None
            targets = torch.from_numpy(held_out.items[rows]).to(model.device)
            top = TopK(len(queries), num_best, like=queries)
            ranks.append(_full_ranks(queries, item_weight, targets, seen, top).cpu())
            top.check_finite()
            best.append(top.items.cpu())
    everywhere = distributed.gather((torch.cat(ranks), torch.cat(best)))
    rank, items = (torch.cat(parts) for parts in zip(*everywhere, strict=True))
    rank = rank.double()

    def averages(gain: Tensor) -> dict[int, float]:
        return {k: gain.where(rank < k, 0).mean().item() for k in ks}

    return FullMetrics(
        num_users=len(users),
        hr=averages(torch.ones_like(rank)),
        ndcg=averages(1 / torch.log2(rank + 2)),
        map=averages(1 / (rank + 1)),
        coverage={k: int(np.count_nonzero(np.unique(items[:, :k]))) / dataset.itemnum for k in ks},
        mrr=(1 / (rank + 1)).mean().item(),
    )


def _full_ranks(
    queries: Tensor, item_weight: Tensor, targets: Tensor, seen: SeenItems | None, top: TopK
) -> Tensor:
    """(m,) numbers of other items that score at least the target; `top` gets all blocks."""
    target_scores = queries.new_empty(len(queries), 1)
    # Out of the very products that the others' scores come from: a product of another shape may be
    # rounded differently, and equals would not tie.
    for first, scores in score_blocks(queries, item_weight):
        row, column = _inside(targets, first, scores)
        target_scores[row, 0] = scores[row, column]
    ranks = torch.zeros_like(targets)
    for first, scores in score_blocks(queries, item_weight):
        if seen is not None:
            seen.hide(first, scores)
        top.update(first, scores)
        row, column = _inside(targets, first, scores)
        scores[row, column] = -math.inf  # the target is none of the others
        ranks += (scores >= target_scores).sum(1)
    return ranks


def _inside(targets: Tensor, first: int, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the targets that this block holds."""
    row = ((targets >= first) & (targets < first + scores.shape[1])).nonzero()[:, 0]
    return row, targets[row] - first


def check_dataset_fits(model: SASREC, dataset: SASRecDataSet) -> None:
    """Refuse a dataset with ids that the model has no vectors for.

    Raises
    ------
    ValueError
        Naming the id and the size of the model's table.
    """
    for name, largest in (("item", dataset.itemnum), ("user", dataset.usernum)):
        table_size: int | None = getattr(model, f"{name}_num", None)  # SASREC has no users
        if table_size is not None and largest > table_size:
            raise ValueError(
                f"dataset has {name} {largest}, the model knows {name}s 1..{table_size} "
                f"({name}_num={table_size})"
            )


def check_at_least(name: str, value: Any, limit: int) -> None:
    """Refuse what is no integer or is below `limit`, by a ValueError naming the argument."""
    if not isinstance(value, (int, np.integer)) or value < limit:
        raise ValueError(f"{name} must be an integer of at least {limit}, got {value!r}")
