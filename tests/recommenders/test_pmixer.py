"""The function of docs/migrating.md that reads models of pmixer/SASRec.pytorch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from docs.test_docs import ROOT, blocks_of
from torch import nn
from torch.nn import functional as F

MAXLEN, WIDTH, ITEMS = 5, 8, 11


@pytest.fixture
def from_pmixer():
    page = Path(ROOT / "docs" / "migrating.md").read_text()
    (code,) = (block.code for block in blocks_of(page) if "def from_pmixer" in block.code)
    namespace = {}
    exec(code, namespace)
    return namespace["from_pmixer"]


class Old(nn.Module):
    """Computes what models of before May 2025 compute, with their names of parameters."""

    def __init__(self, position_rows):
        super().__init__()
        self.item_emb = nn.Embedding(ITEMS + 1, WIDTH, 0)
        self.pos_emb = nn.Embedding(position_rows, WIDTH)
        for name in ("attention_layernorms", "forward_layernorms"):
            setattr(self, name, nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-8) for _ in range(2)))
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, 1) for _ in range(2))
        self.forward_layers = nn.ModuleList(
            nn.ModuleDict({f"conv{n}": nn.Conv1d(WIDTH, WIDTH, 1) for n in (1, 2)})
            for _ in range(2)
        )
        self.last_layernorm = nn.LayerNorm(WIDTH, eps=1e-8)

    def scores(self, seq):
        """(B, T) items -> (B, ITEMS)"""
        x = self.item_emb(seq) * WIDTH**0.5
        x = (x + self.pos_emb.weight[-MAXLEN:] * (seq != 0)[..., None]).transpose(0, 1)
        future = torch.ones(MAXLEN, MAXLEN, dtype=torch.bool).triu(1)
        for i in range(2):
            n = self.attention_layernorms[i](x)
            x = n + self.attention_layers[i](n, x, x, attn_mask=future)[0]
            x = self.forward_layernorms[i](x).permute(1, 2, 0)
            conv = self.forward_layers[i]
            x = (conv["conv2"](F.relu(conv["conv1"](x))) + x).permute(2, 0, 1)
        return self.last_layernorm(x[-1]) @ self.item_emb.weight[1:].T


@pytest.mark.parametrize("position_rows", [MAXLEN, MAXLEN + 1])
def test_full_histories_score_as_before_and_shorter_ones_do_not(
    from_pmixer, tmp_path, position_rows
):
    old = Old(position_rows)
    for parameter in old.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        old.item_emb.weight[0] = 0
    torch.save(old.state_dict(), tmp_path / "SASRec.pth")

    model = from_pmixer(tmp_path / "SASRec.pth", MAXLEN)

    seq = np.array([[1, 2, 3, 4, 5], [7, 7, 8, 11, 1], [0, 0, 3, 4, 5]])
    items = np.arange(1, ITEMS + 1)[None].repeat(3, 0)
    scores = model.predict({"input_seq": seq, "candidate": items})
    expected = old.scores(torch.from_numpy(seq)).detach()
    torch.testing.assert_close(scores[:2], expected[:2], rtol=1e-4, atol=1e-4)
    assert (scores[2] - expected[2]).abs().max() > 1e-3
