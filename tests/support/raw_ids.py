"""Four people and what they bought, under raw ids."""

import narwhals as nw
import numpy as np

from ssept_ext import IdMap, Interactions
from ssept_ext.data.sources.columns import Codes, RawEvents

NUM_ITEMS = 12


HISTORIES = {
    "anna": ["i3", "i1", "i4"],
    "bert": ["i1", "i1", "i2"],
    "cleo": ["i5"],
    "dora": [f"i{i}" for i in range(NUM_ITEMS)],
}


SIZES = {"seq_max_len": 4, "embedding_dim": 4, "num_blocks": 1, "verbose": False}


def interactions(histories=HISTORIES):
    pairs = [(user, item) for user, items in histories.items() for item in items]
    columns = []
    for ids in zip(*pairs, strict=True):
        distinct = list(dict.fromkeys(ids))
        codes = np.array([distinct.index(value) for value in ids])
        columns.append(Codes(codes, IdMap(distinct)))
    return Interactions.from_events(RawEvents(*columns, None))


def rows(frame):
    return nw.from_native(frame).rows()


def frame_columns(frame):
    return nw.from_native(frame).columns
