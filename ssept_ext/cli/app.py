"""The command `ssept`: prepare, train, resume, plot, evaluate, predict, info.

A run folder holds all that the later commands need: the checkpoint (see `ssept_ext.checkpoint`), `run.json` with
the source of the data and every option, and `metrics.csv`; and, until the training is over,
`training.safetensors`, from which it can be resumed. Ctrl-C and SIGTERM leave one, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ssept_ext import distributed
from ssept_ext.cli import commands, prepare, train

USER_ERROR = 2
PROCESS_LOST = 1
INTERRUPTED = 130  # what shells report of a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process by default, and return the exit code.

    0 is success, 2 a mistake of the user's, told in one line on stderr, 130 an interruption by Ctrl-C, 143 one of a
    training by SIGTERM, and 1 the end of another of the processes that torchrun started.
    """
    code: int
    try:
        options = make_parser().parse_args(argv)
        code = options.command(options)
    except (
        *(OSError, ValueError, FloatingPointError, ImportError),
        distributed.ProcessLostError,
    ) as error:
        launched = distributed.launched()
        who = "ssept" if launched is None else f"ssept process {launched[0]} of {launched[1]}"
        print(f"{who}: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = PROCESS_LOST if isinstance(error, distributed.ProcessLostError) else USER_ERROR
        if distributed.size() > 1:  # here, where `error` still keeps the group alive
            distributed.end_process(code)
    except KeyboardInterrupt:
        print("ssept: interrupted", file=sys.stderr)
        code = INTERRUPTED
        if distributed.size() > 1:
            distributed.end_process(code)
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; `command` in its result is the function to call."""
    parser = _Parser(
        prog="ssept", description="Train and use sequential recommenders: SSE-PT and SASRec."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(
        name: str,
        command: Callable[[argparse.Namespace], int],
        add_options: Callable[[argparse.ArgumentParser], None],
    ) -> None:
        assert command.__doc__ is not None
        sub = subparsers.add_parser(
            name, help=command.__doc__, description=command.__doc__, formatter_class=_HelpFormatter
        )
        sub.set_defaults(command=command)
        add_options(sub)


def _train(options: argparse.Namespace, run: Path, source: dict[str, Any]) -> int:
    device = _choose_device(options)
    training_options = _training_options(options)
    writes = distributed.rank() == 0
    callbacks: list[Callback] = [csv_log(run / METRICS_FILE)]
    if writes:  # so that a run that is killed leaves a usable folder
        callbacks.append(lambda progress: save_checkpoint(progress.model, run))
    if options.tensorboard:
        callbacks.append(tensorboard_log(run))
    dataset = _load_data(source)
    ids = _load_ids(source)
    known = None if ids is None else KnownHistories.from_dataset(dataset, *ids)
    torch.manual_seed(options.seed)
    model = _make_model(options, dataset).to(device)
    # First, because it is quick and refuses data that the model could not be measured on either.
    popularity = _measure_popularity(dataset, model.num_neg_test, options.seed)
    with WarpSampler(
        dataset.histories("train"),
        dataset.usernum,
        dataset.itemnum,
        batch_size=options.batch_size,
        maxlen=model.seq_max_len,
        n_workers=options.workers,
        seed=options.seed,
        num_negatives=options.num_negatives,
        popularity_exponent=options.popularity_exponent,
        window_sampling_prob=options.window_sampling_prob,
    ) as sampler:
        if writes:
            run.mkdir(parents=True, exist_ok=True)
            settings = {name: value for name, value in vars(options).items() if name != "command"}
            record = json.dumps({"data": source, "options": settings}, indent=2)
            replace_file(run / RUN_FILE, lambda path: path.write_text(record + "\n"))
            print(_summary(source, dataset, model, run), flush=True)
        interrupted: TrainingInterrupted | None = None
        try:
            train_model(
                model,
                dataset,
                sampler,
                num_epochs=options.epochs,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                val_epoch=options.val_epoch,
                checkpoint=run,
                callbacks=callbacks,
                **asdict(training_options),
            )
        except TrainingInterrupted as error:
            interrupted = error
    model.known = known
    if writes:
        save_checkpoint(model, run)
    if interrupted is not None:
        if writes:
            print(f"ssept: ssept resume {run} goes on", file=sys.stderr)
        return interrupted.code
    metrics = _measure(model, dataset, options.seed)
    if writes:
        (run / TRAINING_FILE).unlink()
        _print_results(popularity, model, metrics)
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw the loss and the validation NDCG@10 of several runs in one picture."""
    logs = {name: Path(name) / METRICS_FILE for name in options.runs}
    for name, log in logs.items():
        _run_file(Path(name))
        if not log.is_file():
            raise ValueError(f"{name} has no {METRICS_FILE} yet: its first epoch is not over")
    plot_curves(logs, Path(options.out), options.over)
    print(options.out)
    return 0


def evaluate_run(options: argparse.Namespace) -> int:
    """Measure a trained model again."""
    model, dataset, trained_with, _ = _open_run(options)
    seed = trained_with["seed"] if options.seed is None else options.seed
    popularity = _measure_popularity(dataset, model.num_neg_test, seed, options.exclude)
    _print_results(popularity, model, _measure(model, dataset, seed, options.exclude))
    return 0


def predict(options: argparse.Namespace) -> int:
    """Print the best unseen items of some users, judged by all their events."""
    model, dataset, _, ids = _open_run(options)
    users = [_user_number(text, dataset, ids) for text in options.users]
    found = recommend(model, dataset, users, options.k)
    items = found.items.astype(object)
    if ids is not None:
        items[found.items > 0] = ids[1].decode(found.items[found.items > 0])
    rows = [("user", "rank", "item", "score")]
    for text, row, scores in zip(options.users, items, found.scores, strict=True):
        rows += [
            (text, str(rank), str(item), f"{score:.4f}")
            for rank, (item, score) in enumerate(zip(row, scores, strict=True), 1)
            if item != 0 and math.isfinite(score)
        ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    return 0


def info(options: argparse.Namespace) -> int:
    """Print what was built and what will run."""
    report = asdict(build_info())
    backends: dict[str, dict[str, str]] = report.pop("ops")
    for name, value in report.items():
        print(f"{name.replace('_', ' '):<20}  {value or '-'}")
    for op, by_device in backends.items():
        for device, backend in by_device.items():
            print(f"{op:<20}  {device:<4}  {backend}")
    return 0


def _new_run_folder(out: str | None) -> Path:
    folder = Path(out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out {folder} is not empty: choose a new folder, or remove it first")
    return folder


def _open_run(
    options: argparse.Namespace,
) -> tuple[SASREC, SASRecDataSet, dict[str, Any], tuple[IdMap, IdMap] | None]:
    """The model of a run folder, its data (or those given instead), the options it was made with, and raw ids."""
    device = _choose_device(options)
    source, trained_with = _read_run_file(Path(options.run))
    model = SASREC.from_pretrained(options.run, backend=options.backend, device=device).eval()
    source = _given_source(options) or source
    dataset = _load_data(source)
    check_dataset_fits(model, dataset)
    return model, dataset, trained_with, _load_ids(source)


def _load_ids(source: dict[str, Any]) -> tuple[IdMap, IdMap] | None:
    """The raw ids of users and items that `ssept prepare` wrote beside the data, if it did."""
    path = Path(f"{source.get('filename')}{prepare.IDS_SUFFIX}")
    return load_id_maps(path) if path.is_file() else None


def _user_number(text: str, dataset: SASRecDataSet, ids: tuple[IdMap, IdMap] | None) -> int:
    """The number of a user, given by raw id if there are such, who has events."""
    try:
        if ids is None:
            user = int(text)
        else:
            parse = {"int64": int, "str": str, "uuid": UUID}[ids[0].type]
            user = int(ids[0].encode([parse(text)], unknown="zero")[0])
    except ValueError:  # no number, or no UUID
        user = 0
    if not len(dataset.histories("all", [user]).items):
        known = f"within 1..{dataset.usernum}" if ids is None else f"{len(ids[0])} raw ids"
        raise ValueError(f"user {text} has no events in the data, whose users are {known}")
    return user


def _run_file(run: Path) -> Path:
    path = run / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: {path} is missing")
    return path


def _read_run_file(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source of the data, and the options of `train`."""
    path = _run_file(run)
    try:
        record = json.loads(path.read_text())
        return record["data"], record["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def _training_options(options: argparse.Namespace) -> TrainingOptions:
    if (options.patience or options.restore_best) and not options.val_epoch:
        raise ValueError("--patience and --restore-best need a --val-epoch of at least 1")
    return TrainingOptions(
        loss=options.loss,
        gbce_t=options.gbce_t,
        adam_betas=tuple(options.adam_betas),
        schedule=options.schedule,
        warmup_steps=options.warmup_steps,
        max_grad_norm=options.max_grad_norm,
        bf16=options.bf16,
        patience=options.patience,
        restore_best=options.restore_best,
    )


def _given_source(options: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments of `SASRecDataSet` for the file that the options name, if they do."""
    if options.data is not None:
        return {"filename": str(Path(options.data).resolve()), "col_sep": options.col_sep}
    if options.col_sep is not None:
        raise ValueError("--col-sep says how to read a file: give --data too")
    return None


def _load_data(source: dict[str, Any]) -> SASRecDataSet:
    if "synthetic" in source:
        return synthetic(**source["synthetic"])
    return SASRecDataSet(**source)


def _defaults(function: Callable[..., object]) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def _choose_device(options: argparse.Namespace) -> torch.device:
    """The device to run on; refuses one, or a backend, that is not there."""
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no CUDA device")
    device = torch.device(options.device or ("cuda" if has_cuda else "cpu"))
    if device.type == "cuda" and distributed.launched() is not None:
        device = torch.device("cuda", distributed.local_rank())
    if options.backend == "native":
        for op, backends in build_info().ops.items():
            if backends[device.type] != "native":
                raise ValueError(
                    f"--backend native: {op} has none for {device.type}, only the "
                    f"{backends[device.type]}"
                )
    return device


def _make_model(options: argparse.Namespace, dataset: SASRecDataSet) -> SequentialRecommender:
    user_dim = options.user_embedding_dim
    if options.model == "sasrec" and (user_dim is not None or options.sse_user_prob):
        given = "--user-embedding-dim" if user_dim is not None else "--sse-user-prob"
        raise ValueError(f"{given}: SequentialRecommender has no user vectors")
    if user_dim is None:
        user_dim = 0 if options.model == "sasrec" else USER_EMBEDDING_DIM
    width = options.item_embedding_dim + user_dim
    arguments = {
        "item_num": dataset.itemnum,
        "seq_max_len": options.seq_max_len,
        "num_blocks": options.num_blocks,
        "embedding_dim": options.item_embedding_dim,
        "attention_num_heads": options.attention_num_heads,
        "conv_dims": [options.ffn_dim or width, width],
        "dropout_rate": options.dropout_rate,
        "l2_reg": options.l2_reg,
        "num_neg_test": options.num_neg_test,
        "architecture": options.architecture,
        "embedding_init": options.embedding_init,
        "sse_item_prob": options.sse_item_prob,
        "sse_target_prob": options.sse_target_prob,
        "sse_joint": options.sse_joint,
        "backend": options.backend,
    }
    if options.model == "sasrec":
        return SASREC(**arguments)
    return SSEPT(
        user_num=dataset.usernum,
        user_embedding_dim=user_dim,
        sse_user_prob=options.sse_user_prob,
        **arguments,
    )


def _measure(
    model: SequentialRecommender, dataset: SASRecDataSet, seed: int, exclude: Exclude = "train"
) -> Metrics:
    return {
        "valid": evaluate_valid(model, dataset, seed, exclude=exclude),
        "test": evaluate(model, dataset, seed, exclude=exclude),
    }


def _measure_popularity(
    dataset: SASRecDataSet, num_neg_test: int, seed: int, exclude: Exclude = "train"
) -> Metrics:
    return {
        "valid": evaluate_popularity(dataset, seed, num_neg_test, exclude, split="valid"),
        "test": evaluate_popularity(dataset, seed, num_neg_test, exclude, split="test"),
    }


def _summary(
    source: dict[str, Any], dataset: SASRecDataSet, model: SequentialRecommender, run: Path
) -> str:
    events = len(dataset.histories("all").items)
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"data   {source.get('filename', 'synthetic')}: {dataset.num_users:,} users, "
        f"{dataset.itemnum:,} items, {events:,} events\n"
        f"model  {type(model).__name__} on {model.device}: {parameters:,} parameters\n"
        f"run    {run}"
    )


def _print_results(popularity: Metrics, model: SequentialRecommender, metrics: Metrics) -> None:
    print(f"\n{'':<10} {'valid':^16}   {'test':^16}")
    print(f"{'':<10} {'HR@10':>7} {'NDCG@10':>8}   {'HR@10':>7} {'NDCG@10':>8}")
    for name, row in (("popularity", popularity), (type(model).__name__, metrics)):
        cells = (f"{hr:>7.4f} {ndcg:>8.4f}" for ndcg, hr in (row["valid"], row["test"]))
        print(f"{name:<10} {'   '.join(cells)}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # An option without a default says in its own words what happens when it is not given.
        return action.help if action.default is None else super()._get_help_string(action)
