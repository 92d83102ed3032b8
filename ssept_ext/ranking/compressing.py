"""The method `compress`."""

from __future__ import annotations

import copy
from typing import TypeVar, get_args

import torch

from ssept_ext.network.compressed import CompressedTable, ItemDtype
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.checks import check_one_of

Recommender = TypeVar("Recommender", bound=SequentialRecommender)


def compress(model: Recommender, dtype: ItemDtype) -> Recommender:
    """Return a copy of the model that ranks items by a smaller copy of their vectors.

    `recommend`, `similar_items` and evaluations among all items then read a half ("float16") or a quarter ("int8") of
    the bytes, which takes as much less time where the catalogue is large. Scores, and with them the order of items with
    about equal ones, are a little off. The parameters are shared with the model, and its own vectors go on reading
    histories, so that no memory is saved. After further training, compress the model again.

    Parameters
    ----------
    dtype
        "float16" or "int8". Of int8, each vector has a scale of its own.

    Raises
    ------
    ValueError
        If `dtype` is another one, or a vector has an element that is not finite or, for float16, beyond ±65504.
    RuntimeError
        If the table is spread over several processes.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> model.compress("int8").recommend({1: [3, 5]}, k=2).items.shape
    (1, 2)
    """
    check_one_of("dtype", dtype, get_args(ItemDtype))
    with torch.no_grad():
        table = CompressedTable.of(
            model.output_table(), getattr(torch, dtype), model.scores, model.version()
        )
    result = copy.copy(model)
    result.compressed = table
    return result
