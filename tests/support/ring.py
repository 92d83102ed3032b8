"""A stub model with one table and one other weight, and 12 users who walk along a ring of 30 items."""

import torch
from support.factories import tiny_model
from torch import nn

from ssept_ext import SASRecDataSet
from ssept_ext.data.sse import SSE
from ssept_ext.network.config import SASRECConfig
from ssept_ext.network.losses import bce
from ssept_ext.sampling.sampler import WarpSampler
from ssept_ext.training.loop import train_model

NUM_ITEMS, NUM_USERS, LENGTH = 30, 12, 6


class Stub(nn.Module):
    """Scores an item by its vector times that of the token's item, stretched by `stretch`."""

    device = torch.device("cpu")
    is_capturable = True
    content = None
    sse = SSE()

    def __init__(self, seq_max_len=LENGTH, l2_reg=0.0):
        super().__init__()
        self.item_num, self.seq_max_len, self.num_neg_test = NUM_ITEMS, seq_max_len, 5
        self.l2_reg = l2_reg
        self.config = SASRECConfig(item_num=NUM_ITEMS, seq_max_len=seq_max_len)
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(NUM_ITEMS + 1, 4, generator=generator))
        self.stretch = nn.Parameter(torch.ones(4))
        self.batches = []

    def embedding_tables(self):
        return [self.table]

    def lookup_tables(self):
        return {}

    def training_loss(self, batch, **options):
        self.loss_options = options
        return bce(self.sampled_logits(batch), batch.positives)

    def sampled_logits(self, batch):
        assert self.training
        self.batches.append(batch)
        items = torch.cat([batch.positives[:, None], batch.negatives], 1)
        hidden = self.table[batch.items] * self.stretch
        return torch.einsum("nd,nkd->nk", hidden, self.table[items])

    def score(self, batch, candidates, user_part=True):
        last = self.table[batch.items[batch.cu_seqlens[1:].long() - 1]] * self.stretch
        return torch.einsum("bd,bcd->bc", last, self.table[candidates])


class PaddedSampler:
    """recommenders' sampler: tuples of NumPy rows, and nothing but `next_batch`."""

    def __init__(self, sampler):
        self.sampler = sampler

    def next_batch(self):
        return zip(*zip(*self.sampler.next_batch(), strict=True), strict=True)


class Interrupted:
    """Passes batches on until `after` of them were taken, then raises `error`."""

    def __init__(self, sampler, after, error):
        self.sampler, self.left, self.error = sampler, after, error

    def next_batch(self):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.sampler.next_batch()


def ring_dataset():
    """12 users with 9 events each in a ring of 30 items."""
    return SASRecDataSet(
        histories={
            u: [(3 * u + t) % NUM_ITEMS + 1 for t in range(9)] for u in range(1, NUM_USERS + 1)
        }
    )


def make_sampler(dataset, maxlen=LENGTH, batch_size=4):
    return WarpSampler(
        dataset.user_train, NUM_USERS, NUM_ITEMS, batch_size=batch_size, maxlen=maxlen, seed=1
    )


def train(model, dataset, sampler=None, **options):
    sampler = sampler or make_sampler(dataset)
    defaults = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.01, "verbose": False}
    return train_model(model, dataset, sampler, **(defaults | options))


def make_ssept():
    sizes = {"item_num": NUM_ITEMS, "user_num": NUM_USERS, "seq_max_len": LENGTH}
    return tiny_model(**sizes, embedding_dim=8, dropout_rate=0.1, num_neg_test=5)
