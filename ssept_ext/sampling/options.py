"""Options of the sampler: each is declared once, here."""

from __future__ import annotations

from dataclasses import dataclass

from ssept_ext.data.packed import NegativesPer
from ssept_ext.utils.options import PROBABILITY, Range, check_options, option


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How `WarpSampler` draws, beyond recommenders' arguments: more keywords of it.

    Raises
    ------
    ValueError
        If an option is out of range; names option, limit and value.
    """

    num_negatives: int = option(1, "negatives drawn for each event", Range(1, 1_000_000))
    negatives_per: NegativesPer = option(
        "event",
        "what has num_negatives of its own: each event, or a sequence or batch whose events share them, for less time",
    )
    popularity_exponent: float = option(
        0.0, "draw negatives by their number of events to this power; 0 is uniform", Range(0, 2)
    )
    window_sampling_prob: float = option(
        0.0,
        "probability of training on a window anywhere in a history longer than the model sees (SSE-PT++)",
        PROBABILITY,
    )

    def __post_init__(self) -> None:
        check_options(self)
