"""Models with more users and items than before."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ssept_ext.data.growing import neighbours
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.layers import mean_row
from ssept_ext.network.recommender import SequentialRecommender

NewItems = Literal["neighbours", "mean"]
"""Where the vectors of new items start."""

Model = TypeVar("Model", bound=SequentialRecommender)


def grown(model: Model, known: KnownHistories, new_items: NewItems = "neighbours") -> Model:
    """Return a copy of a model that has a vector for each user and item of `known`, whose first ones are its own.

    Parameters
    ----------
    known
        Histories of the users and items that the copy is to have, which it keeps.
    new_items
        The vector of a new item is the mean of those of its neighbours, see `ssept_ext.data.growing.neighbours`, or of
        all earlier items ("mean"), as that of an item without neighbours is. The vector of a new user is the mean of
        all earlier users', by which unknown users are scored.
    """
    num_items, num_users = len(known.item_ids), len(known.user_ids)
    # Large, and not changed in place.
    shared = (model.known, model.trained_on, model.optimizer_state, *model.lookup_tables().values())
    copy = deepcopy(model, {id(x): x for x in shared})
    sizes: dict[str, Any] = {"item_num": num_items}
    assert known.histories is not None
    with torch.no_grad():
        items = model.item_embedding_layer.weight.detach()
        added = _mean(items, num_items + 1)
        if new_items == "neighbours":
            pairs = neighbours(known.histories, model.item_num)
            of, near = (torch.from_numpy(ids).to(items.device) for ids in pairs)
            of = of - len(items)
            counts = torch.bincount(of, minlength=len(added))
            sums = torch.zeros_like(added).index_add_(0, of, items[near])
            has_any = counts > 0
            added[has_any] = sums[has_any] / counts[has_any, None]
        _set_rows(copy.item_embedding_layer, torch.cat([items, added]))
        if copy.user_embedding_layer is not None:
            sizes["user_num"] = num_users
            users = copy.user_embedding_layer.weight.detach()
            _set_rows(copy.user_embedding_layer, torch.cat([users, _mean(users, num_users + 1)]))
    copy.config = replace(model.config, **sizes)
    copy.sse = copy.config.sse
    copy.known = known
    return copy


def _mean(table: Tensor, num_rows: int) -> Tensor:
    """The rows that a table lacks, each the mean of those that it has, but for the padding's."""
    return mean_row(table[1:]).repeat(num_rows - len(table), 1)


def _set_rows(layer: torch.nn.Embedding, rows: Tensor) -> None:
    layer.weight = torch.nn.Parameter(rows, requires_grad=layer.weight.requires_grad)
    layer.num_embeddings = len(rows)
