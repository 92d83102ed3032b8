"""A training step (forward, backward, Adam) on our kernels, against other implementations on the same batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from baselines.eager import EagerSSEPT
from measure import (
    OURS,
    Call,
    Options,
    Quartiles,
    compare,
    gemm_floor,
    heading,
    large_gemm_floor,
    options_from,
    parser,
    print_title,
)
from torch import Tensor, nn
from workload import DROPOUT, SHARED, Batch, Name, Workload, encoder_flops, load

from ssept_ext import SSEPT
from ssept_ext.data.packed import PackedBatch, number_rows
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import eager_step, make_optimizer
from ssept_ext.training.table_rows import table_rows

BASELINE = "eager baseline"
YARDSTICK = "yardstick"


@dataclass(frozen=True)
class Case:
    workload: Name
    recommenders: float
    """Steps of the yardstick that recommenders' own step costs: the baseline must not cost more."""


CASES = (Case("ML-1M", 1.45), Case("Games", 1.18))


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Call:
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def packed_step(
    model: SSEPT, batch: Batch, compiler: str | None = None, bf16: bool = False
) -> Call:
    """The step of `train_model`."""
    # Every batch has another number of tokens, hence `dynamic`.
    training_loss = (
        torch.compile(model.training_loss, dynamic=True, backend=compiler)
        if compiler
        else model.training_loss
    )

    def loss(batch: PackedBatch, seed: Tensor) -> Tensor:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            return training_loss(batch, seed=seed)

    options = TrainingOptions()
    adam = make_optimizer(model, 1e-3, options)
    rows = table_rows(model, options, adam)
    packed = batch.packed if rows is None else number_rows(batch.packed)
    step = eager_step(adam, loss, rows=rows)
    seed = torch.ones(1, dtype=torch.int64, device=model.device)
    return lambda: step(packed, seed)


def padded_step(model: EagerSSEPT, batch: Batch, compiler: str | None = None) -> Call:
    loss = torch.compile(model.loss, backend=compiler) if compiler else model.loss
    inputs = (batch.users, batch.seq, batch.pos, batch.neg)
    return step_of(model, lambda: loss(*inputs))


def yardstick_step(workload: Workload, batch: Batch, options: Options) -> Call | None:
    """None where the file is missing, and on a GPU, which it does not know."""
    path = SHARED / "yardstick" / "eager_ssept.py"
    if not path.is_file() or options.device.type != "cpu":
        return None
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = workload.model().config
    model = module.EagerSSEPT(
        config.item_num,
        config.user_num,
        config.seq_max_len,
        config.item_dim,
        config.user_dim,
        dropout=DROPOUT,
    )
    inputs = (batch.users, batch.seq, batch.pos, batch.neg)
    return step_of(model, lambda: model.loss(*inputs))


def alternatives_of(workload: Workload, batch: Batch, options: Options) -> dict[str, Call]:
    def ours(**arguments: str) -> SSEPT:
        return workload.model(**arguments).to(options.device)

    def baseline() -> EagerSSEPT:
        return EagerSSEPT(workload.model().config).to(options.device)

    alternatives = {
        OURS: packed_step(ours(), batch),
        "ours, bfloat16 autocast": packed_step(ours(), batch, bf16=True),
        "ours, reference backend": packed_step(ours(backend="reference"), batch),
        BASELINE: padded_step(baseline(), batch),
    }
    yardstick = yardstick_step(workload, batch, options)
    if yardstick is not None:
        alternatives[YARDSTICK] = yardstick
    compiler = "eager" if options.quick else "inductor"
    compiled = {
        "ours, torch.compile": packed_step(ours(), batch, compiler),
        "eager baseline, torch.compile": padded_step(baseline(), batch, compiler),
    }
    alternatives.update({name: step for name, step in compiled.items() if works(name, step)})
    return alternatives


def works(name: str, step: Call) -> bool:
    """Whether torch.compile copes: it needs a C++ compiler, and knows not every processor."""
    try:
        step()
    except RuntimeError as error:
        print(f"  {name} does not work here: {str(error).splitlines()[0]}")
        return False
    return True


def check_baseline(ratio: Quartiles, limit: float) -> None:
    """The baseline is no straw man: it costs what recommenders' own model costs, or less."""
    verdict = "as it must be" if ratio.low <= limit and ratio.high >= 1 else "NOT as it must be"
    print(
        f"  The eager baseline costs {ratio.median:.2f} of the yardstick's step "
        f"(quartiles {ratio.low:.2f}..{ratio.high:.2f}); {verdict}, 1 to {limit}."
    )


def run_case(case: Case, options: Options, seq_max_len: int | None) -> None:
    workload = load(case.workload, options.quick)
    if seq_max_len is not None:
        workload = replace(workload, seq_max_len=seq_max_len)
    batch = workload.batch(options.device)
    config = workload.model().config
    heading(
        f"{workload.describe(batch)}; dropout {DROPOUT}",
    )
    alternatives = alternatives_of(workload, batch, options)
    flops = 3 * encoder_flops(batch.lengths, config)  # a backward is twice a forward
    rows, width = len(batch.packed.items), config.hidden_size
    floors = {
        f"its matrix products at the rate of ({rows} x {width}) @ ({width} x {width})": gemm_floor(
            flops, rows, width, width, options
        ),
        "its matrix products at the rate of large ones": large_gemm_floor(flops, options),
    }
    times = compare(alternatives, floors, options, budget=30)
    if YARDSTICK in alternatives and not options.quick:
        check_baseline(times.ratio(BASELINE, to=YARDSTICK), case.recommenders)


def profile(case: Case, options: Options) -> None:
    """Where our step's time goes."""
    workload = load(case.workload, options.quick)
    step = packed_step(workload.model().to(options.device), workload.batch(options.device))
    step()
    with torch.profiler.profile() as profiler:
        for _ in range(1 if options.quick else 10):
            step()
    key = f"self_{options.device.type}_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50)
    heading(workload.name)
    print(table)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--profile", action="store_true", help="show where our step's time goes instead"
    )
    arguments.add_argument(
        "--seq-max-len", type=int, help="instead of the data set's own: padding decides the ratio"
    )
    parsed = arguments.parse_args(argv)
    options = options_from(parsed)
    print_title(__doc__, options)
    for case in CASES[:1] if options.quick else CASES:
        if parsed.profile:
            profile(case, options)
        else:
            run_case(case, options, parsed.seq_max_len)


if __name__ == "__main__":
    main()
