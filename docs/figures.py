"""Write figures and options into README.md and docs/*.md: from the files in bench/results, and from the code.

In a page, `<!-- figures: NAME -->` and `<!-- end -->` enclose a table or a number that this script makes. With
`--check` it writes nothing, and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, get_args, get_origin, get_type_hints

from papers import RUNS, five_minutes, games, gated, losses, papers, papers_over_draws, preset_table
from results import RESULTS, ROOT, table

from ssept_ext.network import SSEPTConfig
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.recipe import FROM_DATA
from ssept_ext.training.updating import UpdateOptions

AMD = "2026-11-26-amd-epyc-2-cores.txt"
AMD_STEP = "2026-11-29-amd-epyc-zen-4-2-cores-train-step.txt"
"""Measured again after steps became faster, on another AMD processor; Intel's are from before."""
AMD_LOGITS = "2026-11-26-amd-epyc-2-cores-sampled-logits.txt"
"""Measured again after `sampled_logits` became faster; Intel's are from before."""
INTEL = "2026-11-25-intel-r-xeon-r-processor-2-cores.txt"
GPU = "gpu-2026-11-28"
DIFFERENCES = "differences-2026-11-28.md"
CONTENT = "content-2026-11-29.md"
LARGE_TABLES = "2026-11-28-amd-epyc-2-cores-large-tables.txt"
LARGE_DATA = "2026-11-28-amd-epyc-2-cores-large-data.txt"
FIFTY_COLUMNS = "2026-11-29-amd-epyc-2-cores-fifty-columns.txt"
SERVING = "2026-11-29-amd-epyc-2-cores-serving.txt"
PEERS = "2026-11-29-amd-epyc-2-cores-peers.txt"
SHARED_NEGATIVES = "2026-11-28-amd-epyc-2-cores-shared-negatives.txt"

MARKER = re.compile(r"(<!-- figures: (\S+) -->)(.*?)(<!-- end -->)", re.DOTALL)

# Results of bench/all.py.

RATIOS = re.compile(r"^  (\S.*?) {2,}([\d.]+) +[\d.]+\.\.[\d.]+(?: +([\d.]+))?$", re.MULTILINE)


def cases(file: str) -> Iterator[str]:
    """Every table of a file, with the sentences below it and the paragraphs that introduce its benchmark."""
    introduction: list[str] = []
    after_table = False
    for paragraph in (RESULTS / file).read_text().strip().split("\n\n"):
        is_table = "time / ours" in paragraph
        if is_table:
            yield "\n".join([*introduction, paragraph])
        else:
            introduction = [paragraph] if after_table else [*introduction, paragraph]
        after_table = is_table


def case(file: str, *words: str) -> str:
    """The only case with all of these words."""
    (found,) = (text for text in cases(file) if all(word in text for word in words))
    return found


def ratio(case: str, other: str, ours: str = "ours", column: int = 0) -> str:
    """Time (or memory, column 1) of one alternative over that of another; "" if it was not measured."""
    rows = {name: columns for name, *columns in RATIOS.findall(case)}
    if other not in rows or ours not in rows:
        return ""
    value = Decimal(rows[other][column]) / Decimal(rows[ours][column])
    return f"{value.quantize(Decimal(1 if value >= 100 else '.1'), ROUND_HALF_UP)} ×"


def number(case: str, pattern: str) -> str:
    """The number that the pattern's group matches; it must match once."""
    (found,) = re.findall(pattern, case)
    return str(found)


def floor(case: str, name: str) -> str:
    """How many times as long as this floor ours takes."""
    return number(case, rf"Ours takes ([\d.]+) times \(\S+\) as long as {name}")


# What stands in the pages.

MACHINES = ["ML-1M, T = 200: AMD", "Intel", "Games, T = 50: AMD", "Intel"]
NOWHERE = ["", ""]
STEP, ATTENTION, EMBEDDING = "A training step", "`causal_attention`", "`user_item_embedding`"
LAYER_NORM = "`position_layer_norm`"
Measure = Callable[[str], str]
BOTH_WAYS = "Forward and backward, dropout 0."


def on_both(measure: Measure, *words: str) -> list[str]:
    amd = AMD_STEP if STEP in words else AMD
    return [measure(case(file, *words)) for file in (amd, INTEL)]


def everywhere(measure: Measure, *words: str) -> list[str]:
    """The cells below `MACHINES`."""
    return on_both(measure, *words, "ML-1M") + on_both(measure, *words, "Games")


def speed() -> str:
    eager, jit = "eager baseline", "torch.compile"
    users = int(number(case(AMD, "`evaluate`"), r"; (\d+) users"))
    steps: dict[str, Measure] = {
        "training step": lambda c: ratio(c, eager),
        "the same, ours in bfloat16": lambda c: ratio(c, eager, "ours, bfloat16 autocast"),
        f"the same, both under `{jit}`": lambda c: ratio(c, f"{eager}, {jit}", f"ours, {jit}"),
        "extra memory of a step": lambda c: ratio(c, eager, column=1),
    }
    evaluate = on_both(lambda c: ratio(c, eager), "`evaluate`")
    sampling = on_both(lambda c: ratio(c, "Python loops"), "`WarpSampler`")
    rows = [
        *([name, *everywhere(measure, STEP)] for name, measure in steps.items()),
        [f"`evaluate`, {users:,} users", *evaluate, *NOWHERE],
        ["sampling a batch, one thread, against Python loops", *sampling, *NOWHERE],
    ]
    return table(["", *MACHINES], rows)


def ops() -> str:
    sdpa, plain = "masked SDPA, padded", "plain PyTorch"
    rows = [
        [name, other, *everywhere(lambda c, other=other: ratio(c, other), *words)]
        for name, other, words in (
            (ATTENTION, sdpa, (ATTENTION, BOTH_WAYS + "0")),
            (f"{ATTENTION}, dropout .2", sdpa, (ATTENTION, BOTH_WAYS + "2")),
            (EMBEDDING, f"{plain}, packed", (EMBEDDING, BOTH_WAYS)),
            ("", f"{plain}, padded", (EMBEDDING, BOTH_WAYS)),
            (LAYER_NORM, f"{plain}, packed", (LAYER_NORM,)),
            ("", f"{plain}, padded", (LAYER_NORM,)),
        )
    ]
    other = "gather and einsum"
    for label, heading in (("1 negative", "K=1\n"), ("256 negatives", "K=256\n")):
        cells = [ratio(case(file, heading), other) for file in (AMD_LOGITS, INTEL)]
        rows.append([f"`sampled_logits`, {label}", other, *cells, *NOWHERE])
    return table(["op", "against", *MACHINES], rows)


def large_data() -> str:
    """CPU seconds and peak memory of each stage, at both sizes."""
    paragraphs = (RESULTS / LARGE_DATA).read_text().strip().split("\n\n")
    costs = {
        number(text, r"events, ([\d,]+) users"): re.findall(
            r"^  (\S.*?) +[\d.]+ +([\d.]+) +([\d.]+)$", text, re.MULTILINE
        )
        for text in paragraphs
        if " events, " in text
    }
    head = [f"{what}, {size}" for size in costs for what in ("CPU seconds", "peak GB")]
    rows = [
        [label, *(cell for (_, *cells) in stages for cell in cells)]
        for stages in zip(*costs.values(), strict=True)
        for label in [stages[0][0]]
    ]
    return table(["users, and as many items", *head], rows)


def floors() -> str:
    products, copy = "its matrix products at the rate of", "a copy of the bytes"
    rows = [
        [name, f"{what}{which}", *everywhere(lambda c, at=at: floor(c, at), *words)]
        for name, what, which, at, words in (
            ("training step", products, " products of their shape", rf"{products} \(", (STEP,)),
            ("", products, " large ones", f"{products} large", (STEP,)),
            (ATTENTION, "its FLOPs", " at that rate", "its FLOPs", (ATTENTION, BOTH_WAYS + "0")),
            (EMBEDDING, copy, " it must move", copy, (EMBEDDING, BOTH_WAYS)),
            (LAYER_NORM, copy, "", copy, (LAYER_NORM,)),
        )
    ]
    return table(["", "floor", *MACHINES], rows)


def large_tables() -> str:
    """Steps by other optimizers over those by lazy Adam, and these over themselves on the smallest tables."""
    smallest, others = (
        "lazy Adam, the smallest tables",
        ("Adam, gradients of rows", "Adam, whole gradients", "TorchRec's rowwise Adagrad"),
    )
    rows = []
    for size in ("10,000", "100,000", "1,000,000", "3,000,000", "10,000,000"):
        of_size = case(LARGE_TABLES, f"{size} items and")
        rows.append(
            [
                size,
                ratio(of_size, "ours", ours=smallest),
                *(ratio(of_size, other) for other in others),
            ]
        )
    head = ["items, and as many users", "lazy Adam, over 10,000", *others]
    return table(head, rows)


def shared(heading: str, slower: str, faster: str) -> str:
    return ratio(case(SHARED_NEGATIVES, heading), slower, ours=faster)


# Results of bench/gpu_check.py.


def on_gpu(figure: str, value: str) -> float:
    """The last value of this name that a figure has."""
    lines = (RESULTS / GPU / "figures.jsonl").read_text().splitlines()
    return float([f[value] for f in map(json.loads, lines) if f.get("figure") == figure][-1])


def gpu_ratio(figure: str, over: str) -> str:
    """Time of `over` divided by that of `figure`."""
    return f"{on_gpu(over, 'us') / on_gpu(figure, 'us'):.2g} ×"


def gpu_step() -> str:
    eager = "step TF32, eager baseline"
    rows = [
        [label, f"{on_gpu(figure, 'us'):,.0f}", gpu_ratio(figure, eager)]
        for label, figure in (
            ("eager baseline, TF32", eager),
            ("ours, kernel by kernel, TF32", "step TF32, ours without a graph"),
            ("ours, by CUDA graph, TF32", "step TF32"),
            ("the same in bfloat16", "step bfloat16"),
            ("with SSE, TF32", "step TF32, SSE"),
            ("with SSE, bfloat16", "step bfloat16, SSE"),
            ("the authors' architecture, TF32", "step TF32, original"),
        )
    ]
    return table(["training step", "µs", "eager baseline / this"], rows)


def gpu_ops() -> str:
    def cells(label: str, figure: str) -> list[str]:
        ways = [f"{figure}, forward", f"{figure}, forward+backward"]
        times = [f"{on_gpu(way, 'us'):.3g}" for way in ways]
        return [label, *times, f"{on_gpu(ways[1], 'percent_of_copy'):.0f} %"]

    names = ["user_item_embedding", "position_layer_norm"]
    names += [f"sampled_logits, K={k}" for k in (1, 256)]
    rows = [cells("`{}`{}{}".format(*name.partition(",")), name) for name in names]
    return table(["op", "forward, µs", "and backward, µs", "of a copy's bandwidth"], rows)


def gpu_attention() -> str:
    ours, masked, flash = "attention", "masked SDPA", "flash SDPA"
    rows = [
        [
            label,
            f"{on_gpu(f'{ours}, {case}', 'us'):.0f}",
            gpu_ratio(f"{ours}, {case}", f"{other}, {case}"),
        ]
        for label, other, case in (
            (
                "ML-1M's lengths, TF32, against masked SDPA",
                masked,
                "TF32, dropout 0.0, forward+backward",
            ),
            ("the same in bfloat16", masked, "bfloat16, dropout 0.0, forward+backward"),
            (
                "64 features, 512 tokens each, bfloat16, against flash SDPA",
                flash,
                "D=64, T=512, bfloat16, forward+backward",
            ),
            ("the same with 128 features", flash, "D=128, T=512, bfloat16, forward+backward"),
        )
    ]
    return table(["`causal_attention`, forward and backward", "µs", "other / ours"], rows)


# What the code declares.


def option_table(*kinds: type) -> str:
    rows = []
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    for field in (field for kind in kinds for field in fields(kind)):
        if "help" not in field.metadata or field.default is MISSING or field.name in FROM_DATA:
            continue
        limits, text = field.metadata["within"], field.metadata["help"]
        if limits is not None:
            text += f"; {str(limits).removeprefix('finite and ')}"
        if get_origin(hints[field.name]) is Literal:
            text += f"; one of {', '.join(get_args(hints[field.name]))}"
        rows.append([f"`{field.name}={field.default!r}`", text])
    return table(["keyword and default", "what it does"], rows)


def content(index: int) -> str:
    """A table of the file, in the order in which they are there."""
    tables = re.findall(r"^(?:\|.*\n)+", (RESULTS / CONTENT).read_text(), re.MULTILINE)
    return f"\n\n{tables[index]}\n"


FIGURES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "ops": ops,
    "floors": floors,
    "tokens-ml-1m": lambda: number(case(AMD, STEP, "ML-1M"), r"(\d+)% of"),
    "tokens-games": lambda: number(case(AMD, STEP, "Games"), r"(\d+)% of"),
    "recommend-amd": lambda: floor(case(AMD, "`recommend`", "1000 users"), "the product"),
    "recommend-intel": lambda: floor(case(INTEL, "`recommend`", "1000 users"), "the product"),
    "recommend-mib": lambda: number(case(AMD, "`recommend`", "1000 users"), r"needs (\d+) MiB"),
    "gpu-step": gpu_step,
    "gpu-ops": gpu_ops,
    "gpu-attention": gpu_attention,
    "gpu-speedup": lambda: gpu_ratio("step TF32", "step TF32, eager baseline"),
    "gpu-busy": lambda: f"{on_gpu('busy', 'percent'):.0f}",
    "gpu-ndcg-sasrec": lambda: f"{on_gpu('time to NDCG, sasrec-sampled-softmax', 'seconds'):.1f}",
    "gpu-ndcg-sse-pt": lambda: f"{on_gpu('time to NDCG, sse-pt-sampled-softmax', 'seconds'):.1f}",
    "large-tables": large_tables,
    "large-data": large_data,
    "speed-large-tables": lambda: ratio(
        case(LARGE_TABLES, "3,000,000 items"), "Adam, whole gradients"
    ),
    "papers": lambda: papers(RUNS),
    "papers-over-draws": papers_over_draws,
    "losses": losses,
    "presets": preset_table,
    "gated": gated,
    "five-minutes": five_minutes,
    "games": games,
    "served": lambda: number((RESULTS / SERVING).read_text(), r"(?m)^  ([\d.]+) +0$"),
    "history-rectools": lambda: ratio(
        case(PEERS, "RecTools", "one by one"), "RecTools, from a history"
    ),
    "users-rectools": lambda: ratio(case(PEERS, "RecTools", "All 6,040 users"), "RecTools"),
    "history-replay": lambda: ratio(case(PEERS, "RePlay", "one by one"), "RePlay"),
    "users-replay": lambda: ratio(case(PEERS, "RePlay", "All 6,040 users"), "RePlay"),
    "softmax-replay": lambda: ratio(case(PEERS, "RePlay", "A training step"), "RePlay"),
    "speed-fifty": lambda: ratio(case(FIFTY_COLUMNS, "ML-1M"), "eager baseline"),
    "shared-op": lambda: shared("sequence, the op", "ours", "16 of each event's own"),
    "shared-step": lambda: shared("a training step with", "ours", "16 of each event's own"),
    "shared-step-own": lambda: shared("a training step with", "256 of each event's own", "ours"),
    "tokens-fifty": lambda: number(case(FIFTY_COLUMNS, "ML-1M"), r"(\d+)% of"),
    "differences": lambda: "\n\n" + (RESULTS / DIFFERENCES).read_text().partition("\n\n")[2] + "\n",
    "content-new": lambda: content(0),
    "content-all": lambda: content(1),
    "content-known": lambda: content(2),
    "options-model": lambda: option_table(SSEPTConfig),
    "options-sampler": lambda: option_table(SamplerOptions),
    "options-update": lambda: option_table(UpdateOptions),
    "options-training": lambda: option_table(LoopOptions, TrainingOptions),
}


def fill_in(text: str) -> str:
    """A page with the figures that the result files have."""
    if len(MARKER.findall(text)) != text.count("<!-- figures:"):
        raise ValueError("a marker must be <!-- figures: NAME -->, with an <!-- end --> behind it")
    if re.search(r"^<!-- figures: \S+ -->.", text, re.MULTILINE):
        raise ValueError(
            "a line must not begin with the figure of a sentence: it would end the paragraph"
        )
    return MARKER.sub(lambda marked: marked[1] + FIGURES[marked[2]]() + marked[4], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page is out of date")
    check = parser.parse_args().check
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    stale = [page for page in pages if fill_in(page.read_text()) != page.read_text()]
    if check and stale:
        sys.exit(f"run python docs/figures.py: {', '.join(page.name for page in stale)} differ")
    for page in stale:
        page.write_text(fill_in(page.read_text()))
        print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
