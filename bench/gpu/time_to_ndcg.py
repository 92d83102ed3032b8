"""Measures the seconds of training that presets of reproduce.py need to reach an NDCG@10 on ML-1M.

Negatives are drawn by as many threads as there are cores, up to 8: one thread is slower than the GPU.
"""

from __future__ import annotations

import os
import time
from functools import partial

import torch
from reproduce import PRESETS, kind_of
from workload import DATA

from gpu.parts import Run, main
from gpu.stages import NDCG_PRESETS
from ssept_ext import SASRecDataSet
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training import Progress
from ssept_ext.training.recipe import Recipe

TARGET = 0.60


def time_to_ndcg(preset: str, run: Run) -> None:
    settings = PRESETS[preset] | {"precision": "bf16", "val_epoch": 5, "validation": "sampled"}
    if run.options.quick:
        settings |= {"num_epochs": 2, "val_epoch": 1, "seq_max_len": 20}
        data = synthetic(num_users=100)
    else:
        data = SASRecDataSet(DATA / "ml-1m.txt.gz")
    recipe = Recipe.from_options(kind_of(preset), settings)
    torch.manual_seed(0)
    model = recipe.make_model(data.itemnum, data.usernum).to(run.options.device)
    workers = min(8, os.cpu_count() or 1)
    with recipe.make_sampler(data, model.seq_max_len, seed=0, n_workers=workers) as sampler:
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
                workers=workers,
            )
            return reached

        recipe.train(model, data, sampler, verbose=False, callbacks=[watch])


if __name__ == "__main__":
    main({name: partial(time_to_ndcg, name) for name in NDCG_PRESETS})
