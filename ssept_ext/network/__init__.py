"""The network: configuration, layers, encoder, losses and SSE."""

from ssept_ext.data.sse import SSE
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.identity import in_ids_of
from ssept_ext.network.recommender import SequentialRecommender

__all__ = [
    "SSE",
    "SASRECConfig",
    "SSEPTConfig",
    "SequentialRecommender",
    "in_ids_of",
]
