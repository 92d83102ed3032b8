"""Compares the measured figures with the targets for a GPU, and lists the outcome of each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu.stages import NDCG_PRESETS, SANITIZERS, Outcome

Figures = Mapping[str, Mapping[str, Any]]

SECONDS_TO_NDCG = 10


@dataclass(frozen=True)
class Target:
    name: str
    limit: float
    unit: str
    measured: Callable[[Figures], float]
    """Raises KeyError where a figure is missing."""
    at_most: bool = False

    def row(self, figures: Figures, on_gpu: bool) -> list[str]:
        limit = f"{'at most' if self.at_most else 'at least'} {self.limit:g} {self.unit}"
        try:
            value = self.measured(figures)
        except KeyError:
            return [self.name, limit, "", "not measured"]
        met = value <= self.limit if self.at_most else value >= self.limit
        verdict = ("met" if met else "not met") if on_gpu else "not judged: needs a GPU"
        return [self.name, limit, f"{value:.2f} {self.unit}", verdict]


def _times(name: str, of: str, limit: float, title: str) -> Target:
    """How many times as long as the one the other takes."""
    return Target(title, limit, "x", lambda f: f[of]["us"] / f[name]["us"])


def _bandwidth(name: str) -> Target:
    def percent(figures: Figures) -> float:
        share = figures[name]["percent_of_copy"]
        if share is None:
            raise KeyError("copy")
        return float(share)

    return Target(f"{name}, of copy bandwidth", 60, "%", percent)


def _step(precision: str, limit: float) -> Target:
    name = f"step {precision}, SSE"
    return Target(f"training {name}, by graph", limit, "us", lambda f: f[name]["us"], at_most=True)


def _time_to_ndcg(preset: str) -> Target:
    name = f"time to NDCG, {preset}"

    def seconds(figures: Figures) -> float:
        """Of a training that has not got there: those it has taken, if they are too many already."""
        last = figures[name]
        if not last["reached"] and last["seconds"] <= SECONDS_TO_NDCG:
            raise KeyError(name)
        return float(last["seconds"])

    title = f"ML-1M to validation NDCG@10 = .60, {preset}"
    return Target(title, SECONDS_TO_NDCG, "s", seconds, at_most=True)


def _flash(head_size: int) -> Target:
    case = f"D={head_size}, T=512, bfloat16, forward+backward"
    title = f"attention over dense causal flash SDPA, D={head_size}, T=512, bfloat16"
    return _times(f"attention, {case}", f"flash SDPA, {case}", 0.7, title)


def _masked(precision: str) -> Target:
    case = f"{precision}, dropout 0.0, forward+backward"
    title = f"attention over masked SDPA, {precision}"
    return _times(f"attention, {case}", f"masked SDPA, {case}", 2, title)


TARGETS = (
    _times(
        "step TF32",
        "step TF32, eager baseline",
        3,
        "training step TF32, by graph, over the eager baseline",
    ),
    _step("TF32", 500),
    _step("bfloat16", 400),
    Target("GPU busy over an epoch of ML-1M", 80, "%", lambda f: f["busy"]["percent"]),
    *(_time_to_ndcg(preset) for preset in NDCG_PRESETS),
    *(_masked(precision) for precision in ("TF32", "bfloat16")),
    *(_flash(head_size) for head_size in (64, 128)),
    *(
        _bandwidth(f"{name}, forward+backward")
        for name in (
            *("user_item_embedding", "position_layer_norm"),
            *("sampled_logits, K=1", "sampled_logits, K=256"),
        )
    ),
)
PASSING = ("tests", "tests of failing captures", *SANITIZERS)
"""Stages that are targets themselves."""


def _of_stage(name: str, outcomes: Sequence[Outcome], on_gpu: bool) -> list[str]:
    outcome = next((o for o in outcomes if o.stage == name), None)
    if outcome is None or outcome.verdict == "no time left":
        return [name, "pass", "", "not measured"]
    verdict = ("met" if outcome.passed else "not met") if on_gpu else "not judged: needs a GPU"
    return [name, "pass", "pass" if outcome.passed else "fail", verdict]


def summary(figures: Figures, outcomes: Sequence[Outcome]) -> str:
    """The table of targets, then the stages."""
    versions = figures.get("versions", {})
    on_gpu = versions.get("device") == "cuda"
    rows = [["target", "limit", "measured", ""]]
    rows += [_of_stage(name, outcomes, on_gpu) for name in PASSING]
    rows += [target.row(figures, on_gpu) for target in TARGETS]
    stages = [["stage", "seconds", "verdict", ""]]
    stages += [[o.stage, f"{o.seconds:.1f}", o.verdict, o.note] for o in outcomes]
    machine = versions.get("gpu") or "no GPU: nothing here says how fast anything is"
    return "\n".join([machine, "", *_columns(rows), "", *_columns(stages)]) + "\n"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
