"""Padded input of three users, as recommenders' classes take it."""

import numpy as np
from support.factories import tiny_model

from ssept_ext import SSEPT


def tiny(kind=SSEPT, **changes):
    """A model with two blocks and two heads."""
    sizes = {"num_blocks": 2, "attention_num_heads": 2, "ffn_dim": 12 if kind is SSEPT else 8}
    return tiny_model(kind, **sizes | changes)


def padded_inputs(**changes):
    inputs = {
        "users": np.array([[1], [5], [2]]),
        "input_seq": np.array([[0, 0, 3, 4, 5, 6], [1, 2, 3, 4, 5, 20], [0, 0, 0, 0, 0, 7]]),
        "positive": np.array([[0, 0, 4, 5, 6, 7], [2, 3, 4, 5, 20, 9], [0, 0, 0, 0, 0, 8]]),
        "negative": np.array([[0, 0, 9, 9, 9, 9], [8, 9, 8, 9, 8, 10], [0, 0, 0, 0, 0, 1]]),
    }
    return inputs | changes
