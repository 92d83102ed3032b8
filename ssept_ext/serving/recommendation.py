"""The methods `recommend` and `similar_items`: by raw ids for a model that has them, else by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.times import Time
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.serving.by_index import recommend_by_index, similar_by_index
from ssept_ext.serving.by_raw_id import recommend_by_raw_id, similar_by_raw_id
from ssept_ext.utils.checks import check_bool


def recommend(
    model: SequentialRecommender,
    histories: SASRecDataSet | Mapping[Any, Sequence[Any]] | None = None,
    users: Sequence[Any] | None = None,
    k: int = 10,
    *,
    candidates: Sequence[Any] | None = None,
    exclude_seen: bool = True,
    with_scores: bool = True,
    batch_size: int = 256,
    at: Time | Sequence[Time] | None = None,
    history_times: Mapping[Any, Sequence[Time]] | None = None,
) -> Any:
    """Return each user's k best items.

    A model trained by `fit` takes raw ids and returns a data frame: see
    `ssept_ext.serving.by_raw_id.recommend_by_raw_id`. Other models, and calls with a `SASRecDataSet`, use the
    indices of the embedding tables: `histories` is required, and the result is `Recommendations`; see
    `ssept_ext.serving.by_index.recommend_by_index`. Both say what `at` and `history_times` are, which only a model with
    `time_bias` takes.

    Raises
    ------
    TypeError
        If an argument is not a sequence or mapping of ids.
    ValueError
        If the model stores no histories and none are given, `with_scores` is False for indices, or times are missing.

    Examples
    --------
    >>> from ssept_ext import SSEPT
    >>> model = SSEPT(item_num=9, user_num=2, seq_max_len=4, embedding_dim=4, conv_dims=[8, 8])
    >>> model.recommend({1: [3, 5], 2: [7]}, k=3).items.shape
    (2, 3)
    """
    with_scores = check_bool("with_scores", with_scores)
    options: dict[str, Any] = {
        "candidates": candidates,
        "exclude_seen": check_bool("exclude_seen", exclude_seen),
        "batch_size": batch_size,
        "at": at,
        "history_times": history_times,
    }
    if model.known is not None and not isinstance(histories, SASRecDataSet):
        return recommend_by_raw_id(model, histories, users, k, with_scores=with_scores, **options)
    if histories is None:
        raise ValueError(
            f"histories must be given, because this model stores none: pass histories=, or train with "
            f"{type(model).__name__}.fit"
        )
    if not with_scores:
        raise ValueError("with_scores must be True for ids that are indices, got False")
    return recommend_by_index(model, histories, users, k, **options)


def similar_items(model: SequentialRecommender, items: Sequence[Any], k: int = 10) -> Any:
    """Return the k items most similar to each of `items`, by cosine similarity, without the item itself.

    A model trained by `fit` takes raw ids and returns a data frame: see
    `ssept_ext.serving.by_raw_id.similar_by_raw_id`. Other models take indices and return `Recommendations`: see
    `ssept_ext.serving.by_index.similar_by_index`.

    Examples
    --------
    >>> from ssept_ext import SSEPT
    >>> model = SSEPT(item_num=9, user_num=2, seq_max_len=4, embedding_dim=4, conv_dims=[8, 8])
    >>> model.similar_items([3], k=2).items.shape
    (1, 2)
    """
    if model.known is None:
        return similar_by_index(model, items, k)
    return similar_by_raw_id(model, items, k)
