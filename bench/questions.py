"""What peers.py asks of every model, and how the answers are ranked and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssept_ext import SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.evaluation.candidates import Split, input_histories, measurable_users, times_asked
from ssept_ext.evaluation.metrics import CUTOFF, ndcg_and_hr

_SCORES_AT_A_TIME = 1 << 22

Scores = NDArray[np.float64]
Reference = Callable[[IntArray, IntArray, IntArray], tuple[float, float]]
"""NDCG@10 and HR@10, by RecTools, of users (n,), their best items (n, 10), 0 for none, and the items to find."""


@dataclass
class Stopwatch:
    """Seconds between `start` and `stop`, summed up."""

    wall: float = 0.0
    cpu: float = 0.0
    """Of all threads of this process."""

    def start(self) -> None:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


@dataclass(frozen=True)
class Questions:
    """What a model is asked: the next item of each history."""

    inputs: Histories
    """In ascending order of users."""
    targets: IntArray
    """(n,) the items to find, which models do not see."""
    at: IntArray | None
    """(n,) times of the events to find; None if times are not known."""

    @classmethod
    def of(cls, data: SASRecDataSet, split: Split) -> Questions:
        users = measurable_users(data, split)
        inputs, held_out = input_histories(data, users, split), data.histories(split, users)
        return cls(inputs, held_out.oldest(), times_asked(inputs, held_out))

    def parts(self, size: int) -> Iterator[Questions]:
        for start in range(0, len(self.targets), size):
            rows = slice(start, min(start + size, len(self.targets)))
            at = None if self.at is None else self.at[rows]
            yield Questions(self.inputs.part(rows), self.targets[rows], at)


Validate = Callable[[int, Stopwatch], bool]
"""Called every few epochs with their number and the stopped watch; True ends the training."""


class Model(Protocol):
    """A model that can be compared."""

    module: nn.Module
    """Has the parameters, once training has begun."""

    def train(self, seed: int, validate: Validate) -> None: ...

    def scores(self, asked: Questions) -> Scores:
        """(n, items + 1) of all items; -inf for those that the model does not know. May be modified."""
        ...


def measure(model: Model, asked: Questions, num_items: int, reference: Reference) -> list[float]:
    """NDCG@10 and HR@10 of a model's answers.

    Raises
    ------
    ValueError
        If a score is not a number, or the reference has other figures for the same rankings.
    """
    parts = [
        ranked(model.scores(part), part)
        for part in asked.parts(max(1, _SCORES_AT_A_TIME // num_items))
    ]
    ranks, best = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    figures = ndcg_and_hr(torch.from_numpy(ranks)[:, None])
    expected = reference(asked.inputs.users, best, asked.targets)
    if not np.allclose(figures, expected, rtol=0, atol=1e-9):
        raise ValueError(f"NDCG@10 and HR@10 are {figures}, but rectools.metrics has {expected}")
    return list(figures)


def ranked(scores: Scores, asked: Questions) -> tuple[IntArray, IntArray]:
    """Rank all items but those of the input; the item to find is ranked in any case, below all with its score.

    Returns
    -------
    tuple
        (n,) ranks of the items to find, from 0; beyond all items where the model does not know them. (n, 10) best
        items, 0 where there are no more.
    """
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers, got nan")
    rows = np.arange(len(scores))
    of_targets = scores[rows, asked.targets]
    scores[np.repeat(rows, np.diff(asked.inputs.offsets)), asked.inputs.items] = -np.inf
    # Models compute in float32, which has no number between a score and the next float64 below it.
    below = np.nextafter(of_targets, -np.inf)
    scores[rows, asked.targets] = below
    ranks = (scores > below[:, None]).sum(1)
    ranks[of_targets == -np.inf] = scores.shape[1]
    best = np.argsort(-scores, 1)[:, :CUTOFF]
    best[np.take_along_axis(scores, best, 1) == -np.inf] = 0
    return ranks, best
