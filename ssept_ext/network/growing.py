"""Models with more users and items than before."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssept_ext.data.growing import neighbours
from ssept_ext.data.histories import IntArray
from ssept_ext.data.item_features import ItemFeatures
from ssept_ext.data.known_histories import KnownHistories
from ssept_ext.network.content import checked_features
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sharded import is_sharded
from ssept_ext.network.tables import mean_row

NewItems = Literal["neighbours", "mean"]
"""Where the vectors of new items start."""

Model = TypeVar("Model", bound=SequentialRecommender)


def grown(
    model: Model,
    known: KnownHistories,
    new_items: NewItems = "neighbours",
    features: Tensor | None = None,
) -> Model:
    """Return a copy of a model that has a vector for each user and item of `known`, whose first ones are its own.

    Parameters
    ----------
    known
        Histories of the users and items that the copy is to have, which it keeps.
    new_items
        The vector of a new item is the mean of those of its neighbours, see `ssept_ext.data.growing.neighbours`, or of
        all earlier items ("mean"), as that of an item without neighbours is. Of an item with features, this is the row
        of the table, to which the projection is added. The vector of a new user is the mean of all earlier users', by
        which unknown users are scored.
    features
        (n, F) features of the n new items, of a model that has some; None if they are not known.
    """
    near = None
    if new_items == "neighbours":
        assert known.histories is not None
        near = neighbours(known.histories, model.item_num)
    copy = _larger(model, len(known.item_ids), len(known.user_ids), near, features)
    copy.known = known
    return copy


def add_items(model: SequentialRecommender, item_features: Any) -> int:
    """Let a model recommend items before their first event: by their features.

    Only for a model that was trained with `item_features`. The vector of a new item is the projection of its features,
    plus the mean of all rows of the table, weighted by the items' numbers of events if these are known: the row of an
    average event. It is trained by later updates, when it has events.

    Parameters
    ----------
    item_features
        Of a model that knows raw ids: `ItemFeatures`, a data frame, or a mapping, as `fit` takes them. Items that the
        model knows already stay as they are. Of another model: (n, F) features of n items, whose numbers are
        `item_num + 1` and so on.

    Returns
    -------
    int
        Number of items that were added.

    Raises
    ------
    TypeError
        If ids are of another type than the model's.
    ValueError
        If the model has no features, its tables are spread over processes, or features are not finite or of another
        width than the model's.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> features = [[0, 0], [1, 0], [0, 1]]
    >>> model = SASREC(item_num=2, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4], item_features=features)
    >>> model.add_items([[1, 1]])
    1
    >>> model.recommend({1: [1, 2]}, k=2).items.tolist()
    [[3, 0]]
    """
    if is_sharded(model) or model.content is None:
        raise ValueError(
            "items can be added to a model that was made with item_features, which tell where they belong"
        )
    width = model.config.item_feature_dim
    known, popularity = model.known, None
    if known is None:
        features = checked_features(item_features, width)
    else:
        given = ItemFeatures.of(item_features)
        item_ids, numbers = known.item_ids.joined(given.item_ids)
        features = checked_features(given.matrix, width)[numbers > len(known.item_ids)]
        popularity = torch.from_numpy(known.popularity)
        counts = known.item_counts
        if counts is not None:
            counts = np.append(counts, np.zeros(len(features), np.int64))
        known = replace(known, item_ids=item_ids, item_counts=counts)
    count = len(features)
    num_users = getattr(model, "user_num", 0)
    larger = _larger(model, model.item_num + count, num_users, None, features, popularity)
    larger.known = known
    if model.trained_on is not None and known is not None:  # or an update would find other data
        larger.trained_on = replace(
            model.trained_on, items=len(known.item_ids), item_ids=known.item_ids.digest
        )
    vars(model).update(vars(larger))
    return count


def _larger(
    model: Model,
    num_items: int,
    num_users: int,
    near: tuple[IntArray, IntArray] | None,
    features: Tensor | None,
    popularity: Tensor | None = None,
) -> Model:
    """Return a copy of a model with more items and users; see `grown`, and `add_items` for `popularity`, (I + 1,)."""
    # Large, and not changed in place.
    shared: list[Any] = [
        model.known,
        model.trained_on,
        model.compressed,
        model.optimizer_state,
        *model.lookup_tables().values(),
    ]
    if model.content is not None:
        shared.append(model.content.features)
    copy = deepcopy(model, {id(x): x for x in shared})
    sizes: dict[str, Any] = {"item_num": num_items}
    with torch.no_grad():
        items = model.item_embedding_layer.weight.detach()
        added = _new_rows(items, num_items, near, popularity)
        if copy.content is not None:
            more = copy.content.features.new_zeros(len(added), copy.config.item_feature_dim)
            if features is not None:
                more.copy_(features)
            # An item without features starts from others' whole vectors, of which features are a part.
            vectors = _new_rows(model.item_table(), num_items, near, popularity)
            added = torch.where(more.any(1, keepdim=True), added, vectors)
            copy.content.features = torch.cat([copy.content.features, more])
        _set_rows(copy.item_embedding_layer, torch.cat([items, added]))
        if copy.output_embedding_layer is not None:
            outputs = copy.output_embedding_layer.weight.detach()
            more = _new_rows(outputs, num_items, near, popularity)
            _set_rows(copy.output_embedding_layer, torch.cat([outputs, more]))
        if copy.user_embedding_layer is not None:
            sizes["user_num"] = num_users
            users = copy.user_embedding_layer.weight.detach()
            _set_rows(copy.user_embedding_layer, torch.cat([users, _mean(users, num_users + 1)]))
    copy.compressed = None  # of the earlier vectors
    copy.config = replace(model.config, **sizes)
    copy.sse = copy.config.sse
    return copy


def _new_rows(
    table: Tensor,
    num_items: int,
    near: tuple[IntArray, IntArray] | None,
    popularity: Tensor | None,
) -> Tensor:
    """The rows that a table of items lacks, each the mean of those of the item's neighbours or, without any, of all."""
    added = _mean(table, num_items + 1)
    if popularity is not None and popularity.any():
        wide = torch.promote_types(table.dtype, torch.float32)
        weights = popularity[1:].to(table.device, wide)
        average = weights @ table[1:].to(wide) / weights.sum()
        added[:] = average.to(table.dtype)
    if near is None:
        return added
    of, found = (torch.from_numpy(ids).to(table.device) for ids in near)
    of = of - len(table)
    counts = torch.bincount(of, minlength=len(added))
    sums = torch.zeros_like(added).index_add_(0, of, table[found])
    has_any = counts > 0
    added[has_any] = sums[has_any] / counts[has_any, None]
    return added


def _mean(table: Tensor, num_rows: int) -> Tensor:
    """The rows that a table lacks, each the mean of those that it has, but for the padding's."""
    return mean_row(table[1:]).repeat(num_rows - len(table), 1)


def _set_rows(layer: torch.nn.Embedding, rows: Tensor) -> None:
    layer.weight = torch.nn.Parameter(rows, requires_grad=layer.weight.requires_grad)
    layer.num_embeddings = len(rows)
