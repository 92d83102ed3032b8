"""Training losses on sampled logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bce(logits: Tensor, positives: Tensor) -> Tensor:
    """Binary cross-entropy of the positive against the sampled negatives (Kang & McAuley 2018, equation 6).

    `-log sigmoid(positive) - Σ_k log(1 - sigmoid(negative_k))`, averaged over the tokens that have a target.

    Parameters
    ----------
    logits : (N, 1 + K) floating, the positive's in column 0
    positives : (N,) int64, 0 where a token has no target

    Returns
    -------
    Scalar; 0 where no token has a target.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.softplus(-wide[:, 0]) + F.softplus(wide[:, 1:]).sum(1)
    has_target = positives != 0
    return torch.where(has_target, loss, 0).sum() / has_target.sum().clamp(min=1)
