"""Command lines of models that train in milliseconds, and what they print and write."""

import os
import signal

from ssept_ext import WarpSampler
from ssept_ext.cli import main

TINY = [
    *("--seq-max-len", "6", "--num-blocks", "1", "--item-embedding-dim", "4"),
    *("--batch-size", "8", "--num-neg-test", "5", "--device", "cpu"),
]
"""On the 20 users of the fixture `data`, an epoch has 2 steps."""


def train(data, *options, out="run", epochs="2"):
    argv = ["train", "--data", str(data), "--out", out, "--epochs", epochs, *TINY, *options]
    return main(argv)


def numbers(table_row):
    return [float(cell) for cell in table_row.split()[1:]]


def weights_of(folder):
    (path,) = folder.glob("model-*.safetensors")
    return path


def rows_of(output):
    """The two rows of the table of results: popularity, model."""
    return output.splitlines()[-2:]


def before_batch(monkeypatch, index, act):
    """Let the sampler do something before it gives the batch with this index."""
    honest = WarpSampler.next_packed

    def next_packed(self):
        if self.tell() == index:
            act()
        return honest(self)

    monkeypatch.setattr(WarpSampler, "next_packed", next_packed)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
