"""RecTools' models for peers.py, with the settings that their authors recommend."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from questions import Questions, Scores, Stopwatch, Validate
from rectools import Columns
from rectools.dataset import Dataset
from rectools.dataset.context import get_context
from rectools.metrics import NDCG, HitRate, calc_metrics
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.ligr import LiGRLayers
from torch import nn

from ssept_ext.data.histories import Histories, IntArray
from ssept_ext.evaluation.metrics import CUTOFF

Settings = dict[str, Any]

_SHARED: Settings = {
    "session_max_len": 200,
    "loss": "sampled_softmax",
    "lr": 1e-3,
    "batch_size": 128,
    "item_net_block_types": (IdEmbeddingsItemNet,),
}
# eSASRec's of ML-1M: configs/paper/loo/ml_1m.yaml of blondered/transformer_benchmark.
_SASREC = _SHARED | {
    "n_factors": 64,
    "n_blocks": 2,
    "n_heads": 1,
    "dropout_rate": 0.1,
    "n_negatives": 256,
}
_LIGR = _SASREC | {"transformer_layers_type": LiGRLayers, "use_key_padding_mask": True}
# RecTools' examples/tutorials/transformers_HSTU_tutorial.ipynb.
_HSTU = _SHARED | {
    "n_factors": 50,
    "n_blocks": 2,
    "n_heads": 1,
    "dropout_rate": 0.2,
    "n_negatives": 128,
    "lightning_module_kwargs": {"logits_t": 0.05},
}
_MODELS: dict[str, tuple[type[SASRecModel | HSTUModel], Settings]] = {
    "rectools-sasrec": (SASRecModel, _SASREC),
    "rectools-ligr": (SASRecModel, _LIGR),
    "rectools-hstu": (HSTUModel, _HSTU),
    "rectools-hstu-large": (HSTUModel, _HSTU | {"n_blocks": 8, "n_heads": 2}),
}
# RecTools' default loss, which takes fewer seconds an epoch than many negatives where there are few items.
_MODELS |= {
    f"{name}-softmax": (kind, x | {"loss": "softmax"}) for name, (kind, x) in _MODELS.items()
}
_NUM_EPOCHS = 100
"""Of both sources."""
_QUICK: Settings = {"session_max_len": 10, "n_factors": 8, "batch_size": 10, "n_negatives": 5}


class Timed(Callback):
    """Measures the seconds of training."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_start(self, *_: object) -> None:
        self.watch.start()

    def on_train_end(self, *_: object) -> None:
        self.watch.stop()


def trainer() -> Trainer:
    """As RecTools makes one, but on the CPU and without output."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Timed()],
    )


class Peer:
    """A model of RecTools, with its training events."""

    def __init__(
        self, model: SASRecModel | HSTUModel, train: Histories, num_items: int, val_epoch: int
    ) -> None:
        self._model, self._train, self._num_items = model, to_frame(train), num_items
        self._val_epoch = val_epoch

    @property
    def module(self) -> nn.Module:
        return self._model.torch_model

    def train(self, seed: int, validate: Validate) -> None:
        seed_everything(seed, verbose=False)
        dataset, epoch, is_over = Dataset.construct(self._train), 0, False
        while epoch < _NUM_EPOCHS and not is_over:
            more = min(self._val_epoch, _NUM_EPOCHS - epoch)
            with _quiet():
                self._model.fit_partial(dataset, min_epochs=more, max_epochs=more)
            epoch += more
            (timed,) = (x for x in self._model.fit_trainer.callbacks if isinstance(x, Timed))
            is_over = validate(epoch, timed.watch)

    def data_set(self, histories: Histories) -> Dataset:
        """What RecTools answers from."""
        return Dataset.construct(to_frame(histories))

    def recommend(self, users: IntArray, data_set: Dataset, k: int) -> pd.DataFrame:
        """Recommend the k best items that each user has not seen."""
        with _quiet():
            return self._model.recommend(users, data_set, k=k, filter_viewed=True)

    def scores(self, asked: Questions) -> Scores:
        users, context = asked.inputs.users, None
        if self._model.require_recommend_context:
            context = get_context(
                pd.DataFrame({Columns.User: users, Columns.Datetime: to_times(asked.at)})
            )
        with _quiet():
            found = self._model.recommend(
                users,
                self.data_set(asked.inputs),
                k=self._num_items,
                filter_viewed=False,
                add_rank_col=False,
                context=context,
            )
        scores = np.full((len(users), self._num_items + 1), -np.inf)
        scores[np.searchsorted(users, found[Columns.User]), found[Columns.Item]] = found[
            Columns.Score
        ]
        return scores


def make(name: str, train: Histories, num_items: int, val_epoch: int, quick: bool) -> Peer:
    """A new model. HSTU without times has a bias of positions alone."""
    kind, settings = _MODELS[name]
    if quick:
        settings = settings | _QUICK
    if kind is HSTUModel and train.times is None:
        settings = settings | {"relative_time_attention": False}
    with _quiet():
        model = kind(**settings, get_trainer_func=trainer)
    return Peer(model, train, num_items, val_epoch)


def to_frame(histories: Histories) -> pd.DataFrame:
    """A frame of events as RecTools takes it, in the order of histories; without times, their places are times."""
    lengths = np.diff(histories.offsets)
    places = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], lengths)
    return pd.DataFrame(
        {
            Columns.User: np.repeat(histories.users, lengths),
            Columns.Item: histories.items,
            Columns.Weight: 1.0,
            Columns.Datetime: to_times(places if histories.times is None else histories.times),
        }
    )


def to_times(seconds: IntArray) -> pd.Series:
    return pd.Series(pd.to_datetime(seconds, unit="s")).astype("datetime64[ns]")


def ndcg_and_hr(users: IntArray, best: IntArray, targets: IntArray) -> tuple[float, float]:
    """By rectools.metrics, of users' best items, (n, 10), 0 for none."""
    rows, columns = best.nonzero()
    found = pd.DataFrame(
        {Columns.User: users[rows], Columns.Item: best[rows, columns], Columns.Rank: columns + 1}
    )
    wanted = pd.DataFrame({Columns.User: users, Columns.Item: targets})
    metrics = {"ndcg": NDCG(k=CUTOFF, divide_by_achievable=True), "hr": HitRate(k=CUTOFF)}
    figures = calc_metrics(metrics, found, wanted)
    return figures["ndcg"], figures["hr"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice: to use a GPU, to load data in more processes, to log."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
