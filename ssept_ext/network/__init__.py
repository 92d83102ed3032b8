"""The network: configuration, layers, encoder, losses and SSE."""

from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.network.identity import in_ids_of
from ssept_ext.network.recommender import SequentialRecommender
from ssept_ext.network.sse import SSE

__all__ = [
    "SSE",
    "SASRECConfig",
    "SSEPTConfig",
    "SequentialRecommender",
    "in_ids_of",
]
