"""SSE-PT in eager PyTorch on padded batches: what the package is measured against.

It does the work that recommenders' classes do, where they do it: masks are materialised, the user's
vector is repeated and concatenated for the inputs and again for both scored items, every position is
computed, and sampling is Python, event by event. Masks come from the ids, so that its numbers are
those of `ssept_ext.SSEPT`, whose state dict it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ssept_ext import SASRecDataSet
from ssept_ext.network.config import SSEPTConfig

IntArray = NDArray[np.int64]


class LayerNormalization(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(length, width))
        self.beta = nn.Parameter(torch.zeros(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        mean = x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, correction=0)
        return self.gamma * ((x - mean) / (variance + 1e-8).sqrt()) + self.beta


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.Q, self.K, self.V = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, real: Tensor) -> Tensor:
        """(B, T, D) queries and keys, (B, T) which are tokens -> (B, T, D)"""
        length, width = queries.shape[1:]
        q, k, v = self._split(self.Q(queries)), self._split(self.K(keys)), self._split(self.V(keys))
        scores = q @ k.transpose(1, 2) / (width // self.heads) ** 0.5  # (H·B, T, T)
        never = torch.full_like(scores, -(2.0**32))
        key_is_real = real.repeat(self.heads, 1).unsqueeze(1).repeat(1, length, 1)
        scores = torch.where(key_is_real, scores, never)
        is_past = torch.ones_like(scores).tril()
        scores = torch.where(is_past == 1, scores, never)
        query_is_real = real.repeat(self.heads, 1).unsqueeze(2).repeat(1, 1, length)
        weights = self.dropout(scores.softmax(-1) * query_is_real)
        return torch.cat((weights @ v).chunk(self.heads), -1)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (H·B, T, D / H)"""
        return torch.cat(x.chunk(self.heads, -1))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.conv_layer1 = nn.Linear(width, inner)
        self.conv_layer2 = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.conv_layer2(self.dropout(F.relu(self.conv_layer1(x)))))


class Block(nn.Module):
    def __init__(self, length: int, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.mha = Attention(width, heads, dropout)
        self.ffn = FeedForward(width, inner, dropout)
        self.layer_normalization = LayerNormalization(length, width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        normal = self.layer_normalization(x)
        a = self.mha(normal, x, real) + normal
        return (self.ffn(a) + a) * real.unsqueeze(-1)


class EagerSSEPT(nn.Module):
    """The model of `config`; `load_state_dict` takes that of `ssept_ext.SSEPT`."""

    def __init__(self, config: SSEPTConfig) -> None:
        super().__init__()
        width, dropout = config.hidden_size, config.dropout_rate
        self.config = config
        self.item_embedding_layer = nn.Embedding(config.item_num + 1, config.item_dim, 0)
        self.user_embedding_layer = nn.Embedding(config.user_num + 1, config.user_dim, 0)
        self.positional_embedding_layer = nn.Embedding(config.seq_max_len, width)
        self.dropout = nn.Dropout(dropout)
        sizes = (config.seq_max_len, width, config.attention_num_heads, config.conv_dims[0])
        layers = nn.ModuleList(Block(*sizes, dropout) for _ in range(config.num_blocks))
        self.encoder = nn.ModuleDict({"enc_layers": layers})
        self.layer_normalization = LayerNormalization(config.seq_max_len, width)

    def encode(self, users: Tensor, seq: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1) and (B, T) ids -> hidden states (B, T, D) and the repeated user vectors (B, T, Du)"""
        real = seq != 0
        who = self.user_embedding_layer(users) * self.config.user_dim**0.5
        who = who.expand(-1, seq.shape[1], -1)
        what = self.item_embedding_layer(seq) * self.config.item_dim**0.5
        columns = torch.arange(seq.shape[1], device=seq.device).expand_as(seq)
        x = torch.cat([what, who], 2) + self.positional_embedding_layer(columns)
        x = self.dropout(x) * real.unsqueeze(-1)
        for block in self.encoder["enc_layers"]:
            x = block(x, real)
        return self.layer_normalization(x), who

    def forward(
        self, users: Tensor, seq: Tensor, pos: Tensor, neg: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of the positive and the negative items, (B·T,) each."""
        hidden, who = self.encode(users, seq)
        hidden, who = hidden.flatten(0, 1), who.flatten(0, 1)

        def score(items: Tensor) -> Tensor:
            scored = torch.cat([self.item_embedding_layer(items.flatten()), who], 1)
            return (scored * hidden).sum(-1)

        return score(pos), score(neg)

    def loss(self, users: Tensor, seq: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        positive, negative = self(users, seq, pos, neg)
        has_target = (pos.flatten() != 0).to(positive.dtype)
        losses = -F.logsigmoid(positive) - F.logsigmoid(-negative)
        return (losses * has_target).sum() / has_target.sum()

    @torch.no_grad()
    def predict(self, users: Tensor, seq: Tensor, candidates: Tensor) -> Tensor:
        """(B, 1), (B, T) and (B, C) ids -> (B, C) scores by the newest position"""
        hidden, who = self.encode(users, seq)
        who = who[:, -1:].expand(-1, candidates.shape[1], -1)
        scored = torch.cat([self.item_embedding_layer(candidates), who], 2)
        return (scored * hidden[:, -1:]).sum(-1)


def draw_batch(
    histories: Mapping[int, Sequence[int]],
    usernum: int,
    itemnum: int,
    batch_size: int,
    maxlen: int,
    rng: np.random.RandomState,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Users (B,) and their input, positive and negative items (B, T), drawn one at a time."""
    users = np.zeros(batch_size, np.int64)
    seq, pos, neg = (np.zeros((batch_size, maxlen), np.int64) for _ in range(3))
    for row in range(batch_size):
        user = rng.randint(1, usernum + 1)
        while len(histories.get(user, ())) < 2:
            user = rng.randint(1, usernum + 1)
        users[row] = user
        history = histories[user]
        seen = set(history)
        target, column = history[-1], maxlen - 1
        for item in reversed(history[:-1]):
            seq[row, column], pos[row, column] = item, target
            negative = rng.randint(1, itemnum + 1)
            while negative in seen:
                negative = rng.randint(1, itemnum + 1)
            neg[row, column] = negative
            target, column = item, column - 1
            if column < 0:
                break
    return users, seq, pos, neg


def evaluate(
    model: EagerSSEPT, dataset: SASRecDataSet, seed: int, num_negatives: int, batch_size: int = 256
) -> tuple[float, float]:
    """(NDCG@10, HR@10) of each user's test item among sampled items outside the training history."""
    model.eval()
    device = model.item_embedding_layer.weight.device
    rng = np.random.RandomState(seed)
    train, valid, test = dataset.user_train, dataset.user_valid, dataset.user_test
    users = [u for u in range(1, dataset.usernum + 1) if train.get(u) and test.get(u)]
    ndcg = hits = 0.0
    for start in range(0, len(users), batch_size):
        chunk = users[start : start + batch_size]
        seq = np.zeros((len(chunk), model.config.seq_max_len), np.int64)
        candidates = np.zeros((len(chunk), 1 + num_negatives), np.int64)
        for row, user in enumerate(chunk):
            column = seq.shape[1] - 1
            for item in (*valid[user], *reversed(train[user])):
                if column < 0:
                    break
                seq[row, column] = item
                column -= 1
            seen = set(train[user])
            negatives: list[int] = []
            while len(negatives) < num_negatives:
                drawn = rng.randint(1, dataset.itemnum + 1, 2 * num_negatives)
                negatives += [item for item in drawn if item not in seen]
            candidates[row] = [test[user][0], *negatives[:num_negatives]]
        ids = (np.array(chunk)[:, None], seq, candidates)
        scores = model.predict(*(torch.from_numpy(x).to(device) for x in ids)).cpu().numpy()
        for row in scores:
            rank = (-row).argsort().argsort()[0]
            if rank < 10:
                ndcg += 1 / np.log2(rank + 2)
                hits += 1
    return ndcg / len(users), hits / len(users)
