"""The commands `ssept train` and `ssept resume`."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ssept_ext import distributed
from ssept_ext.checkpoint.model import save_checkpoint
from ssept_ext.checkpoint.training_state import TRAINING_FILE, load_training, save_optimizer
from ssept_ext.cli.options import (
    add_data,
    add_device,
    add_fields,
    add_item_features,
    add_run,
    add_split,
    add_timeout,
    choose_device,
    number,
    output_folder,
)
from ssept_ext.cli.report import (
    measure,
    measure_full,
    measure_popularity,
    print_results,
    summary,
)
from ssept_ext.cli.runs import (
    KINDS,
    METRICS_FILE,
    Source,
    alone_in,
    features_of,
    given_source,
    load_data,
    new_run_folder,
    read_run_file,
    run_file,
    split_as,
    synthetic_source,
    write_run_file,
)
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.evaluation.baselines import Popularity
from ssept_ext.models import SASREC, SSEPT
from ssept_ext.network.config import WIDTH, SSEPTConfig
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.sampling.sampler import MAX_WORKERS
from ssept_ext.training.callbacks import Callback, csv_log, tensorboard_log
from ssept_ext.training.interruption import TrainingInterrupted
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.presets import PRESETS
from ssept_ext.training.recipe import Recipe, hidden_size, option_names
from ssept_ext.utils.options import NOT_NEGATIVE, Range

VAL_EPOCH = 5
"""Default of --val-epoch. `fit`, which writes no log, does not validate by default."""

_ONLY_SSEPT = ("user_embedding_dim", "sse_user_prob")
_SSE = ("sse_user_prob", "sse_item_prob", "sse_target_prob", "sse_joint")
_MODEL = (
    *("architecture", "seq_max_len", "num_blocks", "attention_num_heads", "user_embedding_dim"),
    *("embedding_dim", "dropout_rate", "l2_reg", "num_neg_test", "embedding_init"),
    *("position_bias", "time_bias", "cosine_temperature", "learn_temperature"),
    "tie_item_embeddings",
)
_OWN = {"model": "ssept", "seed": 0, "n_workers": 1, "tensorboard": False, "item_features": None}
"""Options of a run that are not in its recipe, with the values for runs of versions that did not have them."""


def train(options: argparse.Namespace) -> int:
    """Train a model, write its run folder, and print its metrics."""
    kind = KINDS[options.model]
    source = given_source(options) or synthetic_source()
    with distributed.process_group(choose_device(options), options.timeout):
        run = distributed.broadcast_from_rank0(lambda: new_run_folder(options.out))
        dataset = load_data(source)
        source = split_as(dataset, source, options)
        recipe = Recipe.of(kind, options.preset, _given(options, kind), dataset.num_users)
        if options.ffn_dim is not None:
            dims = (options.ffn_dim, recipe.model["conv_dims"][1])
            recipe = replace(recipe, model={**recipe.model, "conv_dims": dims})
        features = None
        if options.item_features is not None:
            features = features_of(options.item_features, dataset)
        return _train(options, alone_in(run, new=True), run, source, dataset, recipe, features)


def resume(options: argparse.Namespace) -> int:
    """Resume an interrupted training, with the same result as without the interruption."""
    run = Path(options.run)
    source, recorded = read_run_file(run)
    if not (run / TRAINING_FILE).is_file():
        raise ValueError(
            f"{run} has no {TRAINING_FILE}: its training is over, or was killed in its first epoch"
        )
    recipe, recorded = recipe_of_run(run, recorded)
    for name, default in _OWN.items():
        setattr(options, name, recorded.get(name, default))
    with distributed.process_group(choose_device(options), options.timeout):
        state = load_training(run)
        assert state is not None
        features = state.model.get("content.features")
        return _train(options, alone_in(run), run, source, load_data(source), recipe, features)


def recipe_of_run(run: Path, recorded: dict[str, Any]) -> tuple[Recipe[SASREC], dict[str, Any]]:
    """Return the recipe of a run, and all its options under the names of this version."""
    kind = KINDS[recorded["model"]]
    try:
        recorded = _updated(recorded, kind)
        names = chain(*option_names(kind).values())
        known = {name: recorded[name] for name in names if name in recorded}
        return Recipe.from_options(kind, known), recorded
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{run_file(run)} is damaged: {error}") from error


def _train(
    options: argparse.Namespace,
    alone: AbstractContextManager[None],
    run: Path,
    source: Source,
    dataset: SASRecDataSet,
    recipe: Recipe[SASREC],
    features: Any,
) -> int:
    """Train from the start or from where a training was; `features` of items, (I + 1, F), or None."""
    writes = distributed.rank() == 0
    callbacks: list[Callback] = [csv_log(run / METRICS_FILE)]
    if writes:  # so that a killed run leaves a usable folder
        callbacks.append(lambda progress: save_checkpoint(progress.model, run))
    if options.tensorboard:
        callbacks.append(tensorboard_log(run))
    known = None
    if dataset.user_ids is not None and dataset.item_ids is not None:
        known = KnownHistories.from_dataset(dataset, dataset.user_ids, dataset.item_ids)
    torch.manual_seed(options.seed)
    model = recipe.make_model(dataset.itemnum, dataset.usernum, options.backend, features)
    model = model.to(choose_device(options))
    # First, because it is fast and raises an error if the model could not be evaluated either.
    among_all = recipe.training.validation == "full"
    if among_all:
        popularity = measure_full(Popularity(dataset), dataset)
    else:
        popularity = measure_popularity(dataset, model.num_neg_test, options.seed)
    interrupted: TrainingInterrupted | None = None
    with ExitStack() as held:
        sampler = held.enter_context(
            recipe.make_sampler(dataset, model.seq_max_len, options.seed, options.n_workers)
        )
        distributed.broadcast_from_rank0(lambda: held.enter_context(alone))
        if writes:
            own = {name: getattr(options, name) for name in _OWN}
            write_run_file(run, source, own | recipe.options())
            print(summary(source, dataset, model, run), flush=True)
        try:
            recipe.train(model, dataset, sampler, checkpoint=run, callbacks=callbacks)
        except TrainingInterrupted as error:
            interrupted = error
        model.known = known
        if writes:
            save_checkpoint(model, run)
        if interrupted is not None:
            if writes:
                print(f"ssept: to continue: ssept resume {run}", file=sys.stderr)
            return interrupted.code
        metrics = (
            measure_full(model, dataset) if among_all else measure(model, dataset, options.seed)
        )
        if writes:
            if known is not None and model.optimizer_state is not None:  # it can be updated
                save_optimizer(model.optimizer_state, run)
            (run / TRAINING_FILE).unlink()
            print_results(popularity, model, metrics, among_all)
    return 0


def _given(options: argparse.Namespace, kind: type[SASREC]) -> dict[str, Any]:
    """Return the recipe's options that the command line gives."""
    names = chain(*option_names(SSEPT).values())
    given = {n: v for n in names if (v := getattr(options, n, None)) is not None}
    for name in _ONLY_SSEPT:
        if kind is SASREC and given.pop(name, None):
            raise ValueError(f"--{name.replace('_', '-')}: SASREC has no user vectors")
    given.setdefault("val_epoch", VAL_EPOCH)
    return given


def _updated(recorded: dict[str, Any], kind: type[SASREC]) -> dict[str, Any]:
    """Rename options that earlier versions recorded, which stored the parsed command line."""
    renamed = {"epochs": "num_epochs", "workers": "n_workers"}
    updated = {renamed.get(name, name): value for name, value in recorded.items()}
    if updated.pop("bf16", False):
        updated["precision"] = "bf16"
    if "ffn_dim" not in updated:
        return updated
    updated["embedding_dim"] = updated.pop("item_embedding_dim")
    updated["item_embedding_dim"] = None
    if updated["user_embedding_dim"] is None:
        updated["user_embedding_dim"] = 16  # the default of those versions
    if (inner := updated.pop("ffn_dim")) is not None:
        updated["conv_dims"] = (inner, hidden_size(kind, updated))
    return updated


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    defaults = Recipe.of(SSEPT, None, {"val_epoch": VAL_EPOCH}, num_users=10**9).options()
    data = add_data(parser, "a synthetic data set")
    add_item_features(data, "items", "none")
    add_split(parser)
    group = parser.add_argument_group(
        "model", "The defaults shown below are those of the preset for --model ssept."
    )
    group.add_argument("--model", choices=KINDS, default="ssept", help="SSE-PT or SASRec")
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="settings to start from (default: the model's best, with sampled softmax)",
    )
    add_fields(group, SSEPTConfig, defaults, _MODEL)
    group.add_argument(
        "--ffn-dim",
        help="inner width of the feed-forward layers (default: item + user)",
        **number(int, WIDTH),
    )
    group = parser.add_argument_group(
        "stochastic shared embeddings",
        "Probabilities of replacing an id in training by a random one. The authors' flags are "
        "probabilities of keeping: --threshold_user 0.08 --threshold_item 0.9 is --sse-user-prob 0.92 "
        "--sse-item-prob 0.1 --sse-joint.",
    )
    add_fields(group, SSEPTConfig, defaults, _SSE)
    group = parser.add_argument_group("training")
    names = option_names(SSEPT)
    add_fields(group, LoopOptions, defaults, names["loop"])
    add_fields(group, SamplerOptions, defaults, names["sampler"])
    precision = group.add_mutually_exclusive_group()
    add_fields(precision, TrainingOptions, defaults, ["precision"])
    precision.add_argument(
        "--bf16",
        dest="precision",
        action="store_const",
        const="bf16",
        help="short for --precision bf16 (default: no)",
    )
    others = [name for name in names["training"] if name not in ("precision", "bf16")]
    add_fields(group, TrainingOptions, defaults, others)
    group.add_argument(
        "--workers",
        dest="n_workers",
        default=1,
        help="number of threads that draw batches",
        **number(int, Range(1, MAX_WORKERS)),
    )
    group.add_argument(
        "--seed",
        default=0,
        help="makes parameters, batches and negatives reproducible",
        **number(int, NOT_NEGATIVE),
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="also log to the run folder for TensorBoard",
    )
    group.add_argument(
        "--out",
        type=output_folder,
        metavar="DIR",
        help="new run folder (default: runs/ and the time)",
    )
    add_timeout(group)
    add_device(group)


def add_resume_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `resume`."""
    add_run(parser)
    add_timeout(parser)
    add_device(parser)
