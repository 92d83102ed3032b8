"""Named settings of model, sampler and training, with what they reach.

`SSEPT.fit(events, preset="sse-pt")` and `ssept train --preset sse-pt` use them; `bench/reproduce.py` measures them
(docs/reproducing.md has the figures). Settings of the model and of SSE are the SSE-PT authors' for ML-1M. They
train at a constant rate of .001 for up to 2001 epochs; a higher rate that decays needs fewer.
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
# Found by validation on ML-1M. Losses over many items learn more in an epoch.
_SAMPLED_SOFTMAX: dict[str, Any] = {
    "loss": "sampled_softmax",
    "num_negatives": 64,
    "num_epochs": 120,
    "learning_rate": 4e-3,
    "warmup_steps": 200,
}
_PLUS_PLUS: dict[str, Any] = {"window_sampling_prob": 0.3}

PRESETS: dict[str, dict[str, Any]] = {
    "sse-pt": _SSE_PT,
    "sse-pt++": _SSE_PT | _PLUS_PLUS,
    "sasrec": _SASREC,
    "sse-pt-sampled-softmax": _SSE_PT | _SAMPLED_SOFTMAX,
    "sse-pt++-sampled-softmax": _SSE_PT | _PLUS_PLUS | _SAMPLED_SOFTMAX,
    "sasrec-sampled-softmax": _SASREC | _SAMPLED_SOFTMAX | {"num_epochs": 60},
}
"""Keywords of `fit`, by name. The plain names train with the papers' loss, BCE against one negative."""

DEFAULT_PRESETS = {"SSEPT": "sse-pt-sampled-softmax", "SASREC": "sasrec-sampled-softmax"}
"""What `fit` and `ssept train` start from, by class: the best models found for the time they take."""


def preset_options(model: str, preset: str | None = None) -> dict[str, Any]:
    """Look up a preset for "SSEPT" or "SASREC", by default the class's own.

    Raises
    ------
    ValueError
        If there is no such preset, or it is of the other class; names those there are.
    """
    fitting = [name for name in PRESETS if name.startswith("sasrec") == (model == "SASREC")]
    name = DEFAULT_PRESETS[model] if preset is None else preset
    if name not in fitting:
        raise ValueError(f'preset of {model} must be one of {", ".join(fitting)}, got "{name}"')
    return dict(PRESETS[name])
