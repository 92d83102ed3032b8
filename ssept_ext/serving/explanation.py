"""Which events of a history a recommendation comes from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssept_ext.data.frames import to_frame
from ssept_ext.data.histories import Histories
from ssept_ext.data.packed import last_events
from ssept_ext.data.times import Time
from ssept_ext.network.encoder import EncoderLayer, PreNormLayer
from ssept_ext.network.layers import MultiHeadAttention, Tokens
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.ops.relative_bias import relative_bias
from ssept_ext.ranking.catalogue import encode_groups, scoring
from ssept_ext.serving.requests import (
    check_indices,
    encode_ids,
    requested_at,
    times_to_ask_at,
)
from ssept_ext.serving.vectors import one_history
from ssept_ext.utils.checks import shown


def explain(
    model: SequentialRecommender,
    item: Any,
    history: Sequence[Any] | None = None,
    *,
    user: Any = None,
    at: Time | None = None,
    history_times: Sequence[Time] | None = None,
) -> Any:
    """Tell which events of a history the score of an item comes from.

    Parameters
    ----------
    item
        Raw id or index of the item.
    history
        Items, oldest first, of which the model sees the last `seq_max_len`. Unknown raw ids are dropped, with a
        warning. By default, the history that the model stores of `user`.
    user, at, history_times
        As `ssept_ext.serving.user_state` takes them.

    Returns
    -------
    data frame
        One row for each event that the model sees, oldest first: `item`; `effect`, by how much the score of the asked
        item falls if the model does not see the event; and `attention`, the weight of the event in the last block when
        the next item is predicted, as a mean over heads. Weights add up to 1, and are the same for all asked items:
        attention alone does not explain a score (Jain & Wallace, NAACL 2019).

    Raises
    ------
    ValueError, TypeError, IndexError
        As `ssept_ext.serving.user_state`, and if neither a history is given nor one of `user` stored.
    KeyError
        If the model has raw ids, and the item, or the user of a stored history, is none of them.
    ImportError
        If narwhals is not installed; it comes with `ssept_ext[data]`.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> frame = model.explain(7, [3, 5])
    >>> list(frame["item"]), round(float(sum(frame["attention"])), 3)
    ([3, 5], 1.0)
    """
    known = model.known
    if known is None:
        (number,) = check_indices(model, "item", [item]).tolist()
    else:
        (number,) = encode_ids(known.item_ids, [item], "raise").tolist()
    if history is None:
        one = _stored(model, user)
        when = times_to_ask_at(model, one, requested_at(at, 1))
    else:
        one, when = one_history(model, history, user, at, history_times)
    seen = _newest(one, model.seq_max_len)
    count = len(seen.items)
    without = _without_each(seen)
    with scoring(model):
        groups = encode_groups(
            model, without, 256, None if when is None else when.repeat(count + 1)
        )
        queries = torch.cat([part for _, part, _ in groups])  # (L + 1, Di)
        rows, numbers = model.item_rows(torch.tensor([[number]], device=model.device))
        vector = model.scores.vectors(rows)[numbers[0, 0]].to(queries.dtype)
        scores = (queries @ vector).cpu().numpy()
        weights = _attention(model, seen, when)
    return to_frame(
        {
            "item": seen.items if known is None else known.item_ids.decode(seen.items),
            "effect": scores[0] - scores[1:],
            "attention": weights,
        }
    )


def _stored(model: SequentialRecommender, user: Any) -> Histories:
    if model.known is None or user is None:
        raise ValueError("history must be given, or a user whose history the model stores")
    number = encode_ids(model.known.user_ids, [user], "raise")
    items, times = model.known.events(int(number[0]))
    if not len(items):
        raise ValueError(f"history must be given for user {shown(user)}, of whom none is stored")
    return Histories(number, np.array([0, len(items)]), items, times)


def _newest(one: Histories, most: int) -> Histories:
    items, times = one.items[-most:], None if one.times is None else one.times[-most:]
    return Histories(one.users, np.array([0, len(items)]), items, times)


def _without_each(one: Histories) -> Histories:
    """The history, and then as many others as it has events, each without one of them."""
    count = len(one.items)
    kept = ~np.eye(count, dtype=bool)
    index = np.append(np.arange(count), np.nonzero(kept)[1])
    lengths = np.append(count, kept.sum(1))
    return Histories(
        one.users.repeat(count + 1),
        np.append(0, np.cumsum(lengths)),
        one.items[index],
        None if one.times is None else one.times[index],
    )


def _attention(
    model: SequentialRecommender, one: Histories, at: NDArray[np.int64] | None
) -> NDArray[np.floating]:
    """(L,) weights of the events in the last block, for the last query."""
    batch = last_events(one, slice(0, 1), model.seq_max_len, at)
    vectors = model.user_vectors(batch.users)
    layers = cast("Sequence[nn.Module]", model.encoder.enc_layers)
    layer = cast("EncoderLayer | PreNormLayer", layers[-1])
    thread, entered = threading.get_ident(), []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:  # another one may be using the model, too
            entered.append(arguments[0])

    handle = layer.register_forward_pre_hook(keep)
    try:
        model.encode_last(batch.to(model.device), vectors)
    finally:
        handle.remove()
    tokens: Tokens = entered[-1]
    normed = tokens.with_states(layer.layer_normalization(tokens))
    keys = normed if isinstance(layer, PreNormLayer) else tokens
    return weights_of(layer.mha, normed.last(), keys).mean(0).cpu().numpy()


def weights_of(attention: MultiHeadAttention, query: Tokens, keys: Tokens) -> Tensor:
    """(H, L) weights of the last query of one sequence, which sees all of its keys."""
    shape = (attention.num_heads, -1)
    q, k = attention.Q(query.x), attention.K(keys.x)
    q, k = (x.view(len(x), *shape).to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5  # (H, 1, L)
    between = None
    if attention.time_bias is not None:
        assert query.target_times is not None
        assert keys.times is not None
        between = (query.target_times[:, None] - keys.times)[None]
    # Distances count events, which have columns without a gap.
    distances = (query.positions[:, None] - keys.positions)[None]
    bias = relative_bias(attention.position_bias, attention.time_bias, distances, between)
    return torch.softmax(scores + (bias if isinstance(bias, float) else bias[0]), 2)[:, 0]
