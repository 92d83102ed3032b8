"""Named settings of model, sampler and training.

Use them as `SSEPT.fit(events, preset="sse-pt")` or `ssept train --preset sse-pt`. `bench/reproduce.py` evaluates
them; docs/reproducing.md has the results. The settings of the model and of SSE are the authors' of SSE-PT for ML-1M,
but for those of "sse-pt++-gated". The authors train at a constant learning rate of .001 for up to 2001 epochs; a higher
rate that decays needs fewer.
"""

from __future__ import annotations

from typing import Any

_SSE_PT: dict[str, Any] = {
    "seq_max_len": 200,
    "embedding_dim": 100,
    "user_embedding_dim": 50,
    "dropout_rate": 0.2,
    "architecture": "original",
    "embedding_init": "xavier",
    "sse_user_prob": 0.92,  # the authors' --threshold_user 0.08 is the probability of keeping
    "sse_item_prob": 0.1,  # --threshold_item 0.9
    "sse_joint": True,
    "num_epochs": 600,
    "learning_rate": 3e-3,
    "adam_betas": (0.9, 0.98),
    "schedule": "cosine",
    "warmup_steps": 200,
}
_SASREC: dict[str, Any] = {
    "seq_max_len": 200,
    "embedding_dim": 100,
    "dropout_rate": 0.2,
    "architecture": "original",
    "embedding_init": "xavier",
    "num_epochs": 120,
    "learning_rate": 2e-3,
    "adam_betas": (0.9, 0.98),
    "schedule": "cosine",
}
# Found by validation on ML-1M. With more negatives, an epoch teaches more, so fewer are needed.
_SAMPLED_SOFTMAX: dict[str, Any] = {
    "loss": "sampled_softmax",
    "num_negatives": 64,
    "num_epochs": 120,
    "learning_rate": 4e-3,
    "warmup_steps": 200,
}
_PLUS_PLUS: dict[str, Any] = {"window_sampling_prob": 0.3}
# Two gated blocks of LiGR with biases of position, and negatives that the events of a sequence share.
_GATED: dict[str, Any] = {
    "architecture": "gated",
    "embedding_dim": 96,
    "user_embedding_dim": 32,
    "attention_num_heads": 2,
    "position_bias": True,
    "num_negatives": 256,
    "negatives_per": "sequence",
    "learning_rate": 2e-3,
}

PRESETS: dict[str, dict[str, Any]] = {
    "sse-pt": _SSE_PT,
    "sse-pt++": _SSE_PT | _PLUS_PLUS,
    "sasrec": _SASREC,
    "sse-pt-sampled-softmax": _SSE_PT | _SAMPLED_SOFTMAX,
    "sse-pt++-sampled-softmax": _SSE_PT | _PLUS_PLUS | _SAMPLED_SOFTMAX,
    "sse-pt++-gated": _SSE_PT | _PLUS_PLUS | _SAMPLED_SOFTMAX | _GATED,
    "sasrec-sampled-softmax": _SASREC | _SAMPLED_SOFTMAX | {"num_epochs": 60},
}
"""Keyword arguments of `fit`, by preset. Names without a loss use that of the papers, BCE with one negative, but for
"sse-pt++-gated", which has a sampled softmax."""

DEFAULT_PRESETS = {"SSEPT": "sse-pt-sampled-softmax", "SASREC": "sasrec-sampled-softmax"}
"""The preset that `fit` and `ssept train` start from, by class: the best known result for its training time."""


def preset_options(model: str, preset: str | None = None) -> dict[str, Any]:
    """Look up a preset for "SSEPT" or "SASREC", by default the class's own.

    Raises
    ------
    ValueError
        If there is no such preset for this class; names those that there are.

    Examples
    --------
    >>> preset_options("SASREC")["loss"]
    'sampled_softmax'
    """
    fitting = [name for name in PRESETS if name.startswith("sasrec") == (model == "SASREC")]
    name = DEFAULT_PRESETS[model] if preset is None else preset
    if name not in fitting:
        raise ValueError(f'preset of {model} must be one of {", ".join(fitting)}, got "{name}"')
    return dict(PRESETS[name])
