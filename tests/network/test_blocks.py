"""The blocks of the architectures "pre-ln" and "gated", against plain PyTorch."""

from dataclasses import replace

import pytest
import torch
from support.factories import perturbed, random_batch, tiny_model
from support.tolerances import assert_close, relative_error
from torch import nn
from torch.nn import functional as F

from ssept_ext import SSEPT
from ssept_ext.network.layers import NO_DROPOUT, Dropout, Tokens
from ssept_ext.ops.dropout import dropout_keep

every_architecture = pytest.mark.parametrize("architecture", ["pre-ln", "gated"])
every_backend = pytest.mark.parametrize("backend", ["auto", "reference"])
LENGTHS = (5, 1, 0, 8, 3)


def model(architecture, **changes):
    """Two blocks of two heads, in float64, with random parameters everywhere."""
    sizes = {"item_embedding_dim": 6, "user_embedding_dim": 2, "ffn_dim": 12, "seq_max_len": 8}
    made = tiny_model(
        architecture=architecture, num_blocks=2, attention_num_heads=2, **sizes | changes
    )
    return perturbed(made).double()


def batch(*lengths):
    return random_batch(
        *(lengths or LENGTHS), seq_max_len=8, generator=torch.Generator().manual_seed(1)
    )


class PlainBlock(nn.Module):
    """One block for one sequence, of the layers that torch has."""

    def __init__(self, width, heads, inner, gated):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-8) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, heads)
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(2 * gated))
        self.first = nn.Linear(width, inner, bias=not gated)
        if gated:
            self.first_gated = nn.Linear(width, inner, bias=False)
        self.second = nn.Linear(inner, width, bias=not gated)

    def forward(self, x):
        n = self.norm1(x)
        hidden = torch.ones(len(x), len(x)).triu(1).bool()
        attended, _ = self.attention(n, n, n, attn_mask=hidden)
        a = x + self.gated(0, x, attended)
        m = self.norm2(a)
        h = self.first(m)
        h = F.silu(h) * self.first_gated(m) if self.gates else h.relu()
        return a + self.gated(1, a, self.second(h))

    def gated(self, number, x, y):
        return torch.sigmoid(self.gates[number](x)) * y if self.gates else y


def plain_copy(layer, width=8, heads=2, inner=12):
    """A `PlainBlock` with the parameters of ours, and the names of the pairs."""
    gated = hasattr(layer, "gate1")
    plain = PlainBlock(width, heads, inner, gated).double()
    ours = dict(layer.named_parameters())
    pairs = {
        "norm1.weight": ["layer_normalization.gamma"],
        "norm1.bias": ["layer_normalization.beta"],
        "norm2.weight": ["layer_normalization2.gamma"],
        "norm2.bias": ["layer_normalization2.beta"],
        **{
            f"attention.in_proj_{kind}": [f"mha.{of}.{kind}" for of in "QKV"]
            for kind in ("weight", "bias")
        },
        **{f"attention.out_proj.{kind}": [f"projection.{kind}"] for kind in ("weight", "bias")},
        "second.weight": ["ffn.conv_layer2.weight"],
    }
    if gated:
        for number in (0, 1):
            for kind in ("weight", "bias"):
                pairs[f"gates.{number}.{kind}"] = [f"gate{number + 1}.{kind}"]
    else:
        pairs["first.weight"] = ["ffn.conv_layer1.weight"]
        pairs |= {"first.bias": ["ffn.conv_layer1.bias"], "second.bias": ["ffn.conv_layer2.bias"]}
    values = {name: torch.cat([ours[x] for x in names]) for name, names in pairs.items()}
    if gated:
        both = ours["ffn.conv_layer1.weight"].chunk(2)
        values |= dict(zip(("first.weight", "first_gated.weight"), both, strict=True))
    plain.load_state_dict(values)
    assert sum(x.numel() for x in plain.parameters()) == sum(x.numel() for x in ours.values())
    return plain, pairs


def plain_encode(m, b):
    """The hidden states of a batch, one sequence after another, and the plain blocks."""
    blocks = [plain_copy(layer)[0] for layer in m.encoder.enc_layers]
    items, users = m.item_embedding_layer.weight, m.user_embedding_layer.weight
    states = []
    for user, begin, end in zip(b.users, b.cu_seqlens, b.cu_seqlens[1:], strict=False):
        item_rows = items[b.items[begin:end]] * items.shape[1] ** 0.5
        user_rows = (users[user] * users.shape[1] ** 0.5).expand(end - begin, -1)
        x = torch.cat([item_rows, user_rows], 1)
        x = x + m.positional_embedding_layer.weight[b.positions[begin:end]]
        for block in blocks if end > begin else ():
            x = block(x)
        norm = m.layer_normalization
        states.append(F.layer_norm(x, x.shape[1:], norm.gamma, norm.beta, 1e-8))
    return torch.cat(states), blocks


@every_backend
@every_architecture
def test_hidden_states_and_gradients_are_those_of_plain_pytorch(architecture, backend):
    m, b = model(architecture, backend=backend), batch()
    weights = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)

    hidden = m.encode(b)
    (hidden * weights).sum().backward()

    gradients = {name: p.grad.clone() for name, p in m.named_parameters()}
    m.zero_grad()
    exact, blocks = plain_encode(m, b)
    (exact * weights).sum().backward()
    assert_close(hidden, exact)
    for i, (layer, block) in enumerate(zip(m.encoder.enc_layers, blocks, strict=True)):
        prefix = f"encoder.enc_layers.{i}."
        expected = {name: p.grad for name, p in block.named_parameters()}
        for name, names in plain_copy(layer)[1].items():
            actual = torch.cat([gradients[prefix + x] for x in names])
            if name == "attention.in_proj_bias":  # the keys' part is nothing but rounding
                actual, expected[name] = (x.view(3, -1)[::2] for x in (actual, expected[name]))
            assert relative_error(actual, expected[name]) < 1e-10, name
        if architecture == "gated":
            both = torch.cat([expected["first.weight"], expected["first_gated.weight"]])
            assert relative_error(gradients[f"{prefix}ffn.conv_layer1.weight"], both) < 1e-10
    for name in ("item_embedding_layer.weight", "user_embedding_layer.weight"):
        actual, expected = gradients[name][1:], m.get_parameter(name).grad[1:]
        assert relative_error(actual, expected) < 1e-10


@every_architecture
def test_a_token_does_not_see_later_ones(architecture):
    m, b = model(architecture), batch(8)
    for changed in range(8):
        items = b.items.clone()
        items[changed] = items[changed] % 20 + 1

        hidden, others = m.encode(b), m.encode(replace(b, items=items))

        assert torch.equal(hidden[:changed], others[:changed])
        assert (hidden[changed:] != others[changed:]).any(1).all()


@every_architecture
def test_other_sequences_and_spare_rows_change_nothing(architecture):
    m, b = model(architecture), batch()
    spare = replace(b, items=F.pad(b.items, (0, 4)), positions=F.pad(b.positions, (0, 4)))
    alone = replace(
        b,
        users=b.users[3:4],
        items=b.items[6:14],
        positions=b.positions[6:14],
        cu_seqlens=torch.tensor([0, 8], dtype=torch.int32),
    )

    hidden = m.encode(b)

    assert_close(m.encode(spare)[:17], hidden)
    assert_close(m.encode(alone), hidden[6:14])


@every_backend
@every_architecture
def test_the_last_tokens_alone_are_those_of_all_tokens(architecture, backend):
    m, b = model(architecture, backend=backend), batch()

    last = m.encode(b, last_only=True)

    full = m.encode(b)
    assert torch.isfinite(last).all()
    assert_close(last[[0, 1, 3, 4]], full[[4, 5, 13, 16]])


@every_architecture
def test_gradients_with_dropout_are_the_same_on_every_backend(architecture):
    b, drop = batch(), Dropout(0.4, torch.tensor([11]))
    results = []
    for backend in ("auto", "reference"):
        torch.manual_seed(2)
        m = model(architecture, backend=backend)
        m.encode(b, drop).square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
    assert relative_error(*results) < 1e-10


@every_architecture
def test_dropout_follows_attention_its_projection_and_both_feed_forward_layers(architecture):
    m, seed = model(architecture), torch.tensor([11])
    layer = m.encoder.enc_layers[0]
    x = torch.randn(1, 8, dtype=torch.float64)  # one token alone, which sees itself
    tokens = Tokens(x, torch.tensor([7]), torch.tensor([0, 1], dtype=torch.int32), 1)

    out = layer(tokens, Dropout(0.4, seed), 5, False).x

    def kept(site, rows, columns):
        return dropout_keep(torch.arange(rows), columns, 0.4, seed, site).double() / 0.6

    def gated(name, x, y):
        return getattr(layer, name)(x).sigmoid() * y if architecture == "gated" else y

    values = layer.mha.V(layer.layer_normalization(tokens)).view(2, 4) * kept(5, rows=2, columns=1)
    a = x + gated("gate1", x, layer.projection(values.view(1, 8)) * kept(6, 1, 8))
    h = layer.ffn.conv_layer1(layer.layer_normalization2(tokens._replace(x=a)))
    h = F.silu(h[:, :12]) * h[:, 12:] if architecture == "gated" else h.relu()
    y = layer.ffn.conv_layer2(h * kept(7, 1, 12)) * kept(8, 1, 8)
    assert_close(out, a + gated("gate2", a, y))


@every_architecture
def test_hidden_states_start_as_large_in_32_blocks_as_in_2(architecture):
    torch.manual_seed(0)
    b, sizes = batch(), {"item_embedding_dim": 40, "user_embedding_dim": 24, "seq_max_len": 8}

    def size_of_sums(num_blocks):
        m = tiny_model(architecture=architecture, num_blocks=num_blocks, **sizes)
        x = torch.randn(sum(LENGTHS), 64)
        return m.encoder(Tokens(x, b.positions, b.cu_seqlens, 8), NO_DROPOUT, 1, False).x.std()

    assert 0.7 < size_of_sums(32) / size_of_sums(2) < 1.4


@every_architecture
def test_parameters_of_recommenders_are_refused_in_one_sentence(architecture):
    state = model("recommenders").state_dict()

    with pytest.raises(RuntimeError, match='parameters of .* architecture "recommenders" or "orig'):
        model(architecture).load_state_dict(state)


@every_architecture
def test_a_file_of_recommenders_is_refused_with_its_name(architecture, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(model("recommenders").state_dict(), path)

    with pytest.raises(ValueError, match=r'model.pt is not .*architecture "recommenders" or "orig'):
        SSEPT.from_recommenders(path, attention_num_heads=2, architecture=architecture)
