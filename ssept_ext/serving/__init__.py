"""Recommendations, similar items, vectors for a nearest-neighbour index, and export."""

from ssept_ext.serving.by_index import Recommendations
from ssept_ext.serving.recommendation import recommend, similar_items
from ssept_ext.serving.vectors import item_vectors, user_state

__all__ = [
    "Recommendations",
    "item_vectors",
    "recommend",
    "similar_items",
    "user_state",
]
