"""Tables of results of bench/reproduce.py, for `figures.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from results import RESULTS, table

from ssept_ext.training.presets import PRESETS

REPRODUCED = "reproduce-2026-11-26.md"
REPRODUCED_OVER_DRAWS = "reproduce-2026-11-28.md"
GATED = "gated-2026-11-29.md"
FIVE_MINUTES = "five-minutes-2026-11-29.md"
GAMES = "games-gated-2026-11-29.md"


def reproduced(section: str, file: str = REPRODUCED, **cells: str) -> dict[str, str]:
    """The only row of a section's tables that has these cells."""
    text = (RESULTS / file).read_text()
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


RUNS_OVER_DRAWS = {
    "ML-1M, SASRec (d = 100)": "sasrec-seed-0,bf16=true",
    "ML-1M, SASRec, sampled softmax": "sasrec-sampled-softmax-seed-0,bf16=true,epochs=60",
    "ML-1M, SSE-PT, sampled softmax": "sse-pt-sampled-softmax-seed-0,bf16=true",
    "Games, SASRec (d = 100)": "sasrec-seed-0",
    "Games, SSE-PT (100 + 10)": "sse-pt-seed-0",
    "Games, SSE-PT, sampled softmax": "sse-pt-sampled-softmax-seed-0,bf16=true",
}


def papers_over_draws() -> str:
    """One run each, with the spread over draws of users and negatives instead of seeds."""
    rows = []
    for label, run in RUNS_OVER_DRAWS.items():
        row = reproduced(label.partition(",")[0], REPRODUCED_OVER_DRAWS, run=run)
        drawn = row["10 draws of 10,000 users, HR@10 and NDCG@10"]
        row["drawn"] = drawn.replace(", ", " / ")
        published = short(row, "published HR@10", "published NDCG@10")
        everybody, full = short(row, "HR@10", "NDCG@10"), short(row, "full HR@10", "full NDCG@10")
        rows.append([label, published, everybody, short(row, "drawn"), full])
    head = [
        "HR@10 / NDCG@10",
        "published",
        "all users",
        "ten draws of 10,000 users",
        "full ranking",
    ]
    return table(head, rows)


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


PRESET_RUNS = {
    "sse-pt": "sse-pt-seed-0,bf16=true",
    "sse-pt++": f"sse-pt++-seed-0,{BCE},epochs=160",
    "sasrec": "sasrec-seed-0,bf16=true",
    "sse-pt-sampled-softmax": "sse-pt-sampled-softmax,bf16=true, 3 seeds",
    "sse-pt++-sampled-softmax": "sse-pt++-sampled-softmax,bf16=true, 3 seeds",
    "sse-pt++-gated": "three seeds",
    "sasrec-sampled-softmax": "sasrec-sampled-softmax-seed-0,bf16=true,epochs=60",
}
"""The run on ML-1M by each preset; its name has what was changed."""


def preset_table() -> str:
    rows = []
    for name, options in PRESETS.items():
        file = GATED if name == "sse-pt++-gated" else REPRODUCED
        row = reproduced("ML-1M", file, run=PRESET_RUNS[name])
        epochs = f"{options['num_epochs']}"
        if name == "sse-pt++":
            epochs += " (measured: 160, at a learning rate of .002)"
        sampled, full = short(row, "HR@10", "NDCG@10"), short(row, "full HR@10", "full NDCG@10")
        rows.append([f'`"{name}"`', epochs, sampled, full])
    head = ["preset", "epochs", "HR@10 / NDCG@10, 100 negatives", "full ranking"]
    return table(head, rows)


def gated() -> str:
    """HR@10 / NDCG@10 among all items of ML-1M."""
    row = reproduced("ML-1M", GATED, run=PRESET_RUNS["sse-pt++-gated"])
    return short(row, "full HR@10", "full NDCG@10")


def five_minutes() -> str:
    """The same after five minutes of training."""
    row = reproduced("ML-1M", FIVE_MINUTES, run="three seeds")
    return short(row, "full HR@10", "full NDCG@10")


def games() -> str:
    """The same among all items of Games."""
    return short(reproduced("Games", GAMES, run="three seeds"), "full HR@10", "full NDCG@10")
