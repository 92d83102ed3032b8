"""Write figures and options into README.md and docs/*.md: from the files in bench/results, and from the code.

In a page, `<!-- figures: NAME -->` and `<!-- end -->` enclose a table or a number that this script makes. With
`--check` it writes nothing, and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from ssept_ext.network import SSEPTConfig
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
AMD = "2026-11-26-amd-epyc-2-cores.txt"
AMD_LOGITS = "2026-11-26-amd-epyc-2-cores-sampled-logits.txt"
"""Measured again after `sampled_logits` became faster; Intel's are from before."""
INTEL = "2026-11-25-intel-r-xeon-r-processor-2-cores.txt"
REPRODUCED = "reproduce-2026-11-26.md"
GPU = "gpu-2026-11-28"
DIFFERENCES = "differences-2026-11-28.md"
FIFTY_COLUMNS = "2026-11-28-amd-epyc-2-cores-fifty-columns.txt"

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


# Results of bench/reproduce.py.


def reproduced(section: str, **cells: str) -> dict[str, str]:
    """The only row of a section's tables that has these cells."""
    text = (RESULTS / REPRODUCED).read_text()
    (part,) = (part for part in text.split("\n## ") if part.startswith(section))
    rows = []
    for lines in re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE):
        head, _, *body = ([c.strip() for c in line[1:-1].split("|")] for line in lines.splitlines())
        for i, name in enumerate(head):
            if name == "published":  # of the column before
                head[i] = f"published {head[i - 1]}"
        rows += [dict(zip(head, row, strict=True)) for row in body]
    (row,) = (row for row in rows if cells.items() <= row.items())
    return row


def short(row: dict[str, str], *columns: str) -> str:
    """0.8240 and 0.5992 as .8240 / .5992, without those that the row has not."""
    values = [re.sub(r"\b0\.", ".", row[name]) for name in columns]
    return " / ".join(value for value in values if value != "–")


# What stands in the pages.

MACHINES = ["ML-1M, T = 200: AMD", "Intel", "Games, T = 50: AMD", "Intel"]
NOWHERE = ["", ""]
STEP, ATTENTION, EMBEDDING = "A training step", "`causal_attention`", "`user_item_embedding`"
LAYER_NORM = "`position_layer_norm`"
Measure = Callable[[str], str]
BOTH_WAYS = "Forward and backward, dropout 0."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(["\n", *(re.sub(r"(?<=\|) +(?=\|)", " ", line) for line in lines), "\n"])


def on_both(measure: Measure, *words: str) -> list[str]:
    return [measure(case(file, *words)) for file in (AMD, INTEL)]


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


BCE = "bf16=true,learning_rate=0.002,warmup_steps=0,val_epoch=5"
RUNS = {
    "ML-1M, SASRec (d = 100)": "sasrec-seed-0,bf16=true",
    "ML-1M, SSE-PT (100 + 50)": f"sse-pt,{BCE},epochs=240, 3 seeds",
    "ML-1M, SSE-PT, longer, one seed": "sse-pt-seed-0,bf16=true",
    "ML-1M, SSE-PT++, one seed": f"sse-pt++-seed-0,{BCE},epochs=160",
    "ML-1M, SASRec, sampled softmax": "sasrec-sampled-softmax-seed-0,bf16=true,epochs=60",
    "ML-1M, SSE-PT, sampled softmax": "sse-pt-sampled-softmax,bf16=true, 3 seeds",
    "ML-1M, SSE-PT++, sampled softmax": "sse-pt++-sampled-softmax,bf16=true, 3 seeds",
    "ML-1M, SSE-PT, softmax over all items": "sse-pt-softmax-seed-0,bf16=true",
    "Games, SASRec (d = 100)": "sasrec,val_epoch=2, 3 seeds",
    "Games, SSE-PT (100 + 10)": "sse-pt,bf16=true, 3 seeds",
    "Games, SSE-PT, sampled softmax, one seed": "sse-pt-sampled-softmax-seed-0,bf16=true",
}
IN_SHORT = [label for label in RUNS if "one seed" not in label and "all items" not in label]


def papers(labels: Iterable[str]) -> str:
    rows = []
    for label in labels:
        section, run = label.partition(",")[0], RUNS[label]
        row = reproduced(section, run=run)
        name, comma, settings = run.removesuffix(", 3 seeds").partition(",")
        one_seed = f"{name.removesuffix('-seed-0')}-seed-0{comma}{settings}"
        epochs = reproduced(section, run=one_seed)["epochs"]  # the row of means has none
        published = short(row, "published HR@10", "published NDCG@10")
        ours, full = short(row, "HR@10", "NDCG@10"), short(row, "full HR@10", "full NDCG@10")
        rows.append([label, epochs, published, ours, full])
    return table(["HR@10 / NDCG@10", "epochs", "published", "ours", "full ranking, ours"], rows)


def losses() -> str:
    """Validations of SSE-PT on ML-1M with the authors' SSE."""
    names = {"BCE": '`"bce"`', "sampled softmax": '`"sampled_softmax"`'}
    columns = ["epochs", "learning rate", "NDCG@10", "HR@10"]
    rows = []
    for loss, negatives, epochs, rate in (
        *(("BCE", negatives, "60", ".004") for negatives in ("1", "4", "16")),
        *(("sampled softmax", negatives, "60", ".004") for negatives in ("16", "64")),
        ("BCE", "1", "600", ".003"),
    ):
        given = {"loss": f"{loss}, {negatives}", "epochs": epochs, "learning rate": rate}
        row = reproduced("What was tried", **given, **{"items replaced": ".1"})
        rows.append([names[loss], negatives, *(row[name] for name in columns)])
    return table(["loss", "negatives", *columns], rows)


# What the code declares.

PRESET_RUNS = {
    "sse-pt": "sse-pt-seed-0,bf16=true",
    "sse-pt++": f"sse-pt++-seed-0,{BCE},epochs=160",
    "sasrec": "sasrec-seed-0,bf16=true",
    "sse-pt-sampled-softmax": "sse-pt-sampled-softmax,bf16=true, 3 seeds",
    "sse-pt++-sampled-softmax": "sse-pt++-sampled-softmax,bf16=true, 3 seeds",
    "sasrec-sampled-softmax": "sasrec-sampled-softmax-seed-0,bf16=true,epochs=60",
}
"""The run on ML-1M by each preset; its name has what was changed."""


def preset_table() -> str:
    rows = []
    for name, options in PRESETS.items():
        row = reproduced("ML-1M", run=PRESET_RUNS[name])
        epochs = f"{options['num_epochs']}"
        if name == "sse-pt++":
            epochs += " (measured: 160, at a learning rate of .002)"
        sampled, full = short(row, "HR@10", "NDCG@10"), short(row, "full HR@10", "full NDCG@10")
        rows.append([f'`"{name}"`', epochs, sampled, full])
    head = ["preset", "epochs", "HR@10 / NDCG@10, 100 negatives", "full ranking"]
    return table(head, rows)


def option_table(*kinds: type) -> str:
    rows = []
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    for field in (field for kind in kinds for field in fields(kind)):
        if "help" not in field.metadata or field.default is MISSING:
            continue
        limits, text = field.metadata["within"], field.metadata["help"]
        if limits is not None:
            text += f"; {str(limits).removeprefix('finite and ')}"
        if get_origin(hints[field.name]) is Literal:
            text += f"; one of {', '.join(get_args(hints[field.name]))}"
        rows.append([f"`{field.name}={field.default!r}`", text])
    return table(["keyword and default", "what it does"], rows)


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
    "papers": lambda: papers(RUNS),
    "papers-in-short": lambda: papers(IN_SHORT),
    "losses": losses,
    "presets": preset_table,
    "speed-fifty": lambda: ratio(case(FIFTY_COLUMNS, "ML-1M"), "eager baseline"),
    "tokens-fifty": lambda: number(case(FIFTY_COLUMNS, "ML-1M"), r"(\d+)% of"),
    "differences": lambda: "\n\n" + (RESULTS / DIFFERENCES).read_text().partition("\n\n")[2] + "\n",
    "options-model": lambda: option_table(SSEPTConfig),
    "options-sampler": lambda: option_table(SamplerOptions),
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
