"""Seconds of training by a preset of reproduce.py, sampling and validation included, to an NDCG@10 on ML-1M."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
from measure import allow_tf32
from reproduce import PRESETS
from workload import DATA

from gpu.parts import Run, main
from gpu.stages import NDCG_PRESETS
from ssept_ext import SASRecDataSet
from ssept_ext.callbacks import Progress
from ssept_ext.datasets import synthetic
from ssept_ext.training import train_model

TARGET = 0.60


def time_to_ndcg(preset: str, run: Run) -> None:
    allow_tf32()
    settings = replace(PRESETS[preset], bf16=True, val_epoch=5)
    if run.options.quick:
        settings = replace(settings, epochs=2, val_epoch=1, seq_max_len=20)
        data = synthetic(num_users=100)
    else:
        data = SASRecDataSet(DATA / "ml-1m.txt.gz")
    torch.manual_seed(0)
    model = settings.make_model(data).to(run.options.device)
    with settings.make_sampler(data, seed=0) as sampler:
        begin = time.monotonic()

        def watch(progress: Progress) -> bool:
            last = progress.epochs[-1]
            if last.val_ndcg is None:
                return False
            reached = last.val_ndcg >= TARGET
            run.record(
                f"time to NDCG, {preset}",
                seconds=time.monotonic() - begin,
                epoch=last.epoch,
                ndcg=last.val_ndcg,
                reached=reached,
            )
            return reached

        train_model(
            model,
            data,
            sampler,
            settings.epochs,
            settings.batch_size,
            settings.learning_rate,
            settings.val_epoch,
            verbose=False,
            options=settings.training_options(),
            callbacks=[watch],
        )


if __name__ == "__main__":
    main({name: partial(time_to_ndcg, name) for name in NDCG_PRESETS})
