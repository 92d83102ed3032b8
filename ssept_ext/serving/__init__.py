"""Recommendations, similar items, explanations, vectors for a nearest-neighbour index, and export."""

import os

import torch

from ssept_ext.serving.by_index import Recommendations
from ssept_ext.serving.explanation import explain
from ssept_ext.serving.recommendation import recommend, similar_items
from ssept_ext.serving.vectors import item_vectors, user_state

__all__ = [
    "Recommendations",
    "explain",
    "item_vectors",
    "recommend",
    "similar_items",
    "user_state",
]

# A forked child does not have torch's threads, and would wait for them forever in its first parallel product.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
