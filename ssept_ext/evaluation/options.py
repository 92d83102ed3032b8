"""Options of evaluations: each is declared once, here."""

from __future__ import annotations

from dataclasses import dataclass

from ssept_ext.evaluation.candidates import MAX_USERS, Exclude
from ssept_ext.evaluation.metrics import Ties
from ssept_ext.utils.options import Range, check_options, option


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What `evaluate`, `evaluate_popularity` and `ssept evaluate` rank among, and how.

    Raises
    ------
    ValueError
        If an option is out of range; names the option, its limit and the value.

    Examples
    --------
    >>> EvaluationOptions(max_users=None).ties
    'pessimistic'
    """

    exclude: Exclude = option(
        "train",
        "which of a user's items, besides the one to find, are never negatives: those in the training history, as in "
        "recommenders, or all",
    )
    ties: Ties = option(
        "pessimistic",
        "rank of items that score the same as the held-out item: above it, below it, or the mean of all orders",
    )
    max_users: int | None = option(
        MAX_USERS,
        "of more users, a random sample of this size is evaluated",
        Range(1),
        none="all",
    )

    def __post_init__(self) -> None:
        check_options(self)
