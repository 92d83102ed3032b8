"""NDCG@10 and HR@10 of the held-out item among sampled negatives, as recommenders measures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssept_ext import ops
from ssept_ext.data import Histories, IntArray, SASRecDataSet, to_csr
from ssept_ext.packing import PackedBatch
from ssept_ext.unseen import philox_key, unseen_items

if TYPE_CHECKING:
    from ssept_ext.model import SASREC

Split = Literal["valid", "test"]
Exclude = Literal["train", "all"]

CUTOFF = 10
MAX_USERS = 10_000


@dataclass(frozen=True)
class Trials:
    """What a measurement asks: for each user the events to look at and the items to rank."""

    inputs: Histories
    candidates: IntArray
    """(n, 1 + num_neg_test) item ids; column 0 is the held-out item, the one to find."""


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
    held_out = valid if split == "valid" else test
    users = [u for u in range(1, dataset.usernum + 1) if train.get(u) and held_out.get(u)]
    if not users:
        raise ValueError(
            f"dataset has no user with a training event and a {split} item (of {dataset.usernum} "
            f"users); has dataset.split() been called?"
        )
    if len(users) > MAX_USERS:
        users = sorted(rng.choice(users, MAX_USERS, replace=False).tolist())

    trained = to_csr({u: train[u] for u in users})
    everything = to_csr({u: [*train[u], *valid[u], *test[u]] for u in users})
    if everything.items.max() > dataset.itemnum:
        event = everything.items.argmax()
        raise ValueError(
            f"items must be in 1..{dataset.itemnum} (dataset.itemnum), got "
            f"{everything.items[event]} in the history of user {users[_rows(everything)[event]]}"
        )
    rated = everything if exclude == "all" else trained
    targets = np.array([held_out[u][0] for u in users], np.int64)
    negatives = unseen_items(rated, dataset.itemnum).draw(philox_key(seed), num_neg_test)
    inputs = trained if split == "valid" else to_csr({u: [*train[u], *valid[u]] for u in users})
    return Trials(inputs, candidates=np.concatenate([targets[:, None], negatives], 1))


def last_events(histories: Histories, rows: slice, seq_max_len: int) -> PackedBatch:
    """Pack the newest `seq_max_len` events of some of the users, on the CPU."""
    starts, ends = histories.offsets[:-1][rows], histories.offsets[1:][rows]
    lengths = np.minimum(ends - starts, seq_max_len)
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    token = np.arange(cu_seqlens[-1])
    event = token + np.repeat(ends - cu_seqlens[1:], lengths)
    return PackedBatch(
        users=torch.from_numpy(histories.users[rows]),
        items=torch.from_numpy(histories.items[event]),
        positions=torch.from_numpy(token + np.repeat(seq_max_len - cu_seqlens[1:], lengths)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
    )


def _rows(histories: Histories) -> IntArray:
    """(E,) the row of `histories.users` that each event belongs to."""
    return np.repeat(np.arange(len(histories.users)), np.diff(histories.offsets))


def measure(model: SASREC, trials: Trials, eval_batch_size: int = 256) -> tuple[float, float]:
    """Let the model rank the candidates of `trials`; (NDCG@10, HR@10) averaged over the users.

    The model computes in evaluation mode and is left in the mode it was in.

    Raises
    ------
    ValueError
        If `eval_batch_size` is below 1, or a score is not finite (a NaN must never rank).
    """
    check_at_least("eval_batch_size", eval_batch_size, 1)
    was_training = model.training
    model.eval()
    ranks = []
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    try:
        with torch.inference_mode():
            for start in range(0, len(trials.candidates), eval_batch_size):
                rows = slice(start, start + eval_batch_size)
                batch = last_events(trials.inputs, rows, model.seq_max_len).to(model.device)
                scores = model.score(
                    batch, torch.from_numpy(trials.candidates[rows]).to(model.device)
                )
                finite &= scores.isfinite().all()
                ranks.append(ranks_of_first(scores))
    finally:
        model.train(was_training)
    all_finite = finite.item()
    ops.raise_pending_errors()
    if not all_finite:
        raise ValueError(
            "scores are not finite: the model's parameters hold NaN or infinite values"
        )
    return ndcg_and_hr(torch.cat(ranks))


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
    """(NDCG@10, HR@10) of the test item among `model.num_neg_test` negatives; see `draw_trials`.

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
        dataset, split, num_neg_test=model.num_neg_test, seed=seed, exclude=exclude
    )
    return measure(model, trials, eval_batch_size)


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
