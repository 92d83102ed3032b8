"""Ranking metrics, among sampled negatives or over the whole catalogue."""

from ssept_ext.evaluation.baselines import ItemNeighbours, Popularity
from ssept_ext.evaluation.candidates import EvaluationCandidates, draw_candidates
from ssept_ext.evaluation.full import evaluate_full, evaluate_ranks
from ssept_ext.evaluation.intervals import (
    Comparison,
    Interval,
    compare_ranks,
    metric_intervals,
)
from ssept_ext.evaluation.ranks import FullMetrics, HeldOutRanks
from ssept_ext.evaluation.sampled import (
    RepeatedMetrics,
    evaluate,
    evaluate_popularity,
    evaluate_repeated,
    evaluate_valid,
    rank_candidates,
)

__all__ = [
    "Comparison",
    "EvaluationCandidates",
    "FullMetrics",
    "HeldOutRanks",
    "Interval",
    "ItemNeighbours",
    "Popularity",
    "RepeatedMetrics",
    "compare_ranks",
    "draw_candidates",
    "evaluate",
    "evaluate_full",
    "evaluate_popularity",
    "evaluate_ranks",
    "evaluate_repeated",
    "evaluate_valid",
    "metric_intervals",
    "rank_candidates",
]
