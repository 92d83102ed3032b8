"""The op `user_item_embedding`: the encoder's input."""

from __future__ import annotations

from torch import Tensor

from ssept_ext import reference
from ssept_ext._extension import Backend, use_native


def user_item_embedding(
    item_weight: Tensor,
    user_weight: Tensor | None,
    position_weight: Tensor,
    items: Tensor,
    users: Tensor | None,
    positions: Tensor,
    cu_seqlens: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Embed N tokens: `concat(item · sqrt(Di), user · sqrt(Du)) + position`, then dropout.

    Wu et al. 2020, section 3.1, equation 1. The dropout mask is a function of (seed, site, token, feature) alone.

    Parameters
    ----------
    item_weight : (I + 1, Di) float16, bfloat16, float32 or float64; row 0 is never read
    user_weight : (U + 1, Du), same type; row 0 is never read. None for SASRec (then Du = 0)
    position_weight : (T, Di + Du), same type
    items : (N,) int64 in 0..I; 0 is a zero vector
    users : (B,) int64 in 0..U; 0 is a zero vector. None where `user_weight` is
    positions : (N,) int64 in 0..T-1
    cu_seqlens : (B + 1,) int32 offsets of the sequences
    dropout_p : probability in [0, 1) that a feature is dropped; the others are scaled by 1 / (1 - dropout_p)
    seed : (1,) int64, needed where dropout_p > 0
    site : which dropout of the model this is
    backend : overrides `ssept_ext.set_backend` for this call

    Returns
    -------
    (N, Di + Du), same type; zeros for tokens from `cu_seqlens[B]` on

    Raises
    ------
    ValueError
        If a shape, type or device does not fit; names the argument.
    IndexError
        If an id or position is outside its table; names it and the table's size.
    """
    args = (item_weight, user_weight, position_weight, items, users, positions, cu_seqlens)
    use_native("user_item_embedding", item_weight.device, backend)
    return reference.user_item_embedding(*args, dropout_p, seed, site)
