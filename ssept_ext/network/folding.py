"""Models without features of items, for whoever only asks for scores."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.utils.meta_device import without_parameters

Model = TypeVar("Model", bound=SequentialRecommender)


def folded(model: Model) -> Model:
    """Return a model without features whose table has the same vectors of items; the model itself if it has none.

    It shares the other parameters. Its vectors need not be made of features again for each answer. It can neither be
    trained on as the model can, nor learn of new items by their features.

    Examples
    --------
    >>> from ssept_ext import SASREC
    >>> features = [[0, 0], [1, 0], [0, 1]]
    >>> model = SASREC(item_num=2, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4], item_features=features)
    >>> plain = folded(model)
    >>> plain.content is None, bool((plain.item_vectors() == model.item_vectors()).all())
    (True, True)
    """
    if model.content is None:
        return model
    with without_parameters():
        plain = type(model)(
            **vars(replace(model.config, item_feature_dim=0)), backend=model.backend
        )
    tensors = {name: x for name, x in model.state_dict().items() if not name.startswith("content.")}
    tensors["item_embedding_layer.weight"] = model.item_table().detach()
    plain.load_state_dict(tensors, assign=True)
    plain.known, plain.trained_on = model.known, model.trained_on
    return plain.train(model.training)
