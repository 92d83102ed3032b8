"""SSE-PT as in recommenders."""

from __future__ import annotations

from ssept_ext import models
from ssept_ext.recommenders.model import SASREC, config_attribute


class SSEPT(SASREC, models.SSEPT):
    """`ssept_ext.SSEPT` with the methods of recommenders' class: see `ssept_ext.recommenders.model.SASREC`.

    Examples
    --------
    >>> model = SSEPT(item_num=50, user_num=20, seq_max_len=8, embedding_dim=8, conv_dims=[16, 16])
    >>> model.hidden_units
    16
    """

    user_embedding_dim = config_attribute("user_embedding_dim")
    item_embedding_dim = config_attribute("item_embedding_dim")
    hidden_units = config_attribute("hidden_size")
