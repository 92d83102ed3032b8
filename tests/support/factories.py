"""Small models, batches and data, made in milliseconds."""

import numpy as np
import torch

from ssept_ext import SSEPT, PackedBatch
from ssept_ext.network.config import SSEPTConfig


def tiny_model(kind=SSEPT, *, ffn_dim=None, **changes):
    """A model of 20 items and 5 users with one block, without dropout.

    `ffn_dim` is the inner width of the feed-forward layers, by default that of the model. What only SSEPT has is
    left out of a SASREC.
    """
    arguments = {
        "item_num": 20,
        "user_num": 5,
        "seq_max_len": 6,
        "num_blocks": 1,
        "embedding_dim": 4,
        "dropout_rate": 0.0,
        "num_neg_test": 9,
    } | changes
    has_users = issubclass(kind.config_class, SSEPTConfig)
    if not has_users:
        for name in ("user_num", "user_embedding_dim"):
            arguments.pop(name, None)
    if "conv_dims" not in arguments:
        width = arguments["embedding_dim"]
        if has_users:
            given = (arguments.get(f"{noun}_embedding_dim") for noun in ("item", "user"))
            width = sum(width if value is None else value for value in given)
        arguments["conv_dims"] = [ffn_dim or width, width]
    return kind(**arguments)


def model_for(dataset, kind=SSEPT, **changes):
    """A tiny model of the users and items of a data set."""
    return tiny_model(kind, item_num=dataset.itemnum, user_num=dataset.usernum, **changes)


def perturbed(model):
    """Random values everywhere, so that no term hides behind a zero or a one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def random_batch(*lengths, item_num=20, user_num=5, seq_max_len=6, num_negatives=1, generator=None):
    """Sequences of these lengths, with random users, items and targets."""
    ids = torch.randint(1, item_num + 1, (sum(lengths), 2 + num_negatives), generator=generator)
    return PackedBatch(
        users=torch.randint(1, user_num + 1, (len(lengths),), generator=generator),
        items=ids[:, 0].contiguous(),
        positions=torch.cat([torch.arange(seq_max_len - n, seq_max_len) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        positives=ids[:, 1].contiguous(),
        negatives=ids[:, 2:].contiguous(),
    )


def write_events(path, users, min_events=4, max_events=9, num_items=30):
    """A file in which each user has a random number of different items."""
    rng = np.random.default_rng(0)
    lines = [
        f"{user} {item}\n"
        for user in users
        for item in rng.permutation(num_items)[: rng.integers(min_events, max_events + 1)] + 1
    ]
    path.write_text("".join(lines))
    return path
