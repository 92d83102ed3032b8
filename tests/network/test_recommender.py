"""The network: the paper's formulas, dropout, how parameters start, and the losses of a packed batch."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from support.factories import perturbed, random_batch, tiny_model
from support.padded import padded_inputs, tiny
from support.tolerances import relative_error

from ssept_ext import SASREC, SSEPT, PackedBatch, pack
from ssept_ext.network import losses
from ssept_ext.network.config import Architecture
from ssept_ext.ops import dropout, reference


def test_a_state_dict_with_missing_extra_or_misshapen_entries_is_torchs_usual_error():
    model = tiny()
    state = model.state_dict()
    state["extra"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match='Unexpected key.*"extra"'):
        model.load_state_dict(state)
    del state["extra"], state["layer_normalization.gamma"]
    with pytest.raises(RuntimeError, match='Missing key.*"layer_normalization.gamma"'):
        model.load_state_dict(state)
    state["layer_normalization.gamma"] = torch.ones(3, 3)
    with pytest.raises(RuntimeError, match=r"size mismatch for layer_normalization.gamma"):
        model.load_state_dict(state)


@pytest.mark.parametrize("architecture", ["recommenders", "original"])
def test_one_event_is_encoded_to_the_same_bits_beside_a_long_history(architecture):
    torch.manual_seed(0)
    sizes = {"embedding_dim": 20, "user_embedding_dim": 12, "conv_dims": [32, 32], "num_blocks": 3}
    model = SSEPT(item_num=9, user_num=3, seq_max_len=8, architecture=architecture, **sizes).eval()
    items = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 5], [1, 2, 3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        together = model.encode(pack(torch.tensor([1, 2]), items), last_only=True)
        alone = model.encode(pack(torch.tensor([1]), items[:1]), last_only=True)
    assert torch.equal(together[:1], alone)


def layer_norm(x, gamma, beta):
    return gamma * (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, True) + 1e-8).sqrt() + beta


def plain_hidden_states(model, user, items):
    """One sequence through the model, by the formulas of the paper and nothing of ours but parameters."""
    p = dict(model.named_parameters())
    t = torch.arange(model.seq_max_len - len(items), model.seq_max_len)
    item, users = p["item_embedding_layer.weight"], p["user_embedding_layer.weight"]
    user_rows = (users[user] * users.shape[1] ** 0.5).expand(len(items), -1)
    x = torch.cat([item[items] * item.shape[1] ** 0.5, user_rows], 1)
    x = x + p["positional_embedding_layer.weight"][t]
    original = model.config.architecture == "original"

    def norm(x, name):
        gamma, beta = p[f"{name}.gamma"], p[f"{name}.beta"]
        return layer_norm(x, gamma if original else gamma[t], beta if original else beta[t])

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    for i in range(model.config.num_blocks):
        block = f"encoder.enc_layers.{i}"
        n = norm(x, f"{block}.layer_normalization")
        q, k, v = (
            linear(source, f"{block}.mha.{name}").unflatten(
                1, (model.config.attention_num_heads, -1)
            )
            for name, source in (("Q", n), ("K", x), ("V", x))
        )
        scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
        future = torch.ones(len(items), len(items)).triu(1).bool()
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        a = torch.einsum("hij,jhd->ihd", weights, v).flatten(1) + n
        m = norm(a, f"{block}.layer_normalization2") if original else a
        x = linear(linear(m, f"{block}.ffn.conv_layer1").relu(), f"{block}.ffn.conv_layer2") + m
    return norm(x, "layer_normalization")


@pytest.mark.parametrize("architecture", ["recommenders", "original"])
def test_the_model_computes_the_formulas_of_its_architecture(architecture):
    model = perturbed(
        tiny(architecture=architecture, item_embedding_dim=6, user_embedding_dim=2)
    ).double()
    user, items = 2, torch.tensor([3, 4, 5, 3])
    candidates = torch.tensor([[7, 1, 20]])
    seq = torch.tensor([[0, 0, *items.tolist()]])
    scores = model.predict({"user": [user], "input_seq": seq, "candidate": candidates})
    h = plain_hidden_states(model, user, items)[-1]
    item, users = model.item_embedding_layer.weight, model.user_embedding_layer.weight
    expected = item[candidates[0]] @ h[:6] + h[6:] @ users[user] * 2**0.5
    assert relative_error(scores[0], expected) < 1e-12


def test_dropout_is_on_in_training_only():
    model = tiny(dropout_rate=0.5)
    inputs = padded_inputs()
    assert not torch.equal(model(inputs)[0], model(inputs)[0])
    assert torch.equal(model(inputs, training=False)[0], model(inputs, training=False)[0])
    model.eval()
    assert torch.equal(model(inputs)[0], model(inputs)[0])


def test_scores_have_no_dropout_in_a_model_that_is_training():
    model = tiny(dropout_rate=0.5, sse_item_prob=1.0, sse_user_prob=1.0).train()
    inputs = padded_inputs()
    asked = {"user": inputs["users"], "input_seq": inputs["input_seq"], "candidate": [[1, 2]] * 3}

    scores, state = model.predict(asked), model.user_state([3, 4, 5])

    assert model.training
    model.eval()
    assert torch.equal(scores, model.predict(asked))
    np.testing.assert_array_equal(state, model.user_state([3, 4, 5]))


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_dropout_follows_torchs_seed_and_is_the_same_on_every_backend(architecture):
    logits = []
    for backend in ("reference", "auto"):
        torch.manual_seed(3)
        model = tiny(dropout_rate=0.3, backend=backend, architecture=architecture).double()
        logits.append(model(padded_inputs())[0])
    assert relative_error(logits[1], logits[0]) < 1e-12


@pytest.mark.parametrize(
    ("architecture", "of_a_block"),
    [("recommenders", 3), ("original", 3), ("pre-ln", 4), ("gated", 4)],
)
def test_no_two_dropouts_of_a_forward_pass_share_a_mask(monkeypatch, architecture, of_a_block):
    sites = []
    original = reference.dropout_keep

    def recording(*args):
        sites.append(args[-1])
        return original(*args)

    for module in (dropout, reference):
        monkeypatch.setattr(module, "dropout_keep", recording)
    tiny(dropout_rate=0.3, backend="reference", architecture=architecture)(padded_inputs())
    # The embedding, then attention and two in the feed-forward layer of each of two blocks; of the others, four.
    assert sorted(sites) == list(range(1 + 2 * of_a_block))


def test_parameters_start_as_the_paper_and_recommenders_start_them():
    model = tiny(item_num=500)
    table = model.item_embedding_layer.weight
    assert (table[0] == 0).all()
    assert (model.user_embedding_layer.weight[0] == 0).all()
    assert table.abs().max() <= 0.05
    assert table.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.05)
    linear = model.encoder.enc_layers[0].mha.Q
    assert (linear.bias == 0).all()
    assert linear.weight.abs().max() <= (6 / (8 + 8)) ** 0.5
    assert (model.layer_normalization.gamma == 1).all()


def test_a_model_in_half_precision_scores_in_float32():
    model = tiny().bfloat16()
    batch = pack(torch.tensor([1]), torch.tensor([[5, 6]]))
    assert model.score(batch, torch.tensor([[1, 2]])).dtype == torch.float32


def test_a_packed_batch_without_targets_cannot_be_trained_on():
    batch = pack(torch.tensor([1]), torch.tensor([[5, 6]]))
    assert isinstance(batch, PackedBatch)
    with pytest.raises(ValueError, match="batch must have positives and negatives"):
        tiny().sampled_logits(batch)


def model_and_batch():
    """A packed batch with three negatives for each event."""
    batch = random_batch(4, 1, 7, seq_max_len=7, num_negatives=3)
    return tiny_model(seq_max_len=7, num_blocks=2), batch


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("bce", {}, lambda x, y: losses.bce(x, y.positives)),
        ("gbce", {"gbce_t": 0.4}, lambda x, y: losses.gbce(x, y.positives, 20, 0.4)),
        ("bpr", {}, lambda x, y: losses.bpr(x, y.positives)),
        ("sampled_softmax", {}, lambda x, y: losses.sampled_softmax(x, y.positives)),
        (
            "sampled_softmax",
            {"negative_log_probs": torch.arange(21.0).log1p()},
            lambda x, y: losses.sampled_softmax(
                x, y.positives, torch.cat([y.positives[:, None], y.negatives], 1).log1p()
            ),
        ),
        (
            "sampled_softmax",
            {"negative_log_probs": torch.arange(21.0).log1p(), "logq_correction": "negatives"},
            lambda x, y: losses.sampled_softmax(
                x,
                y.positives,
                torch.cat([y.positives[:, None], y.negatives], 1).log1p(),
                "negatives",
            ),
        ),
    ],
)
def test_training_loss_is_the_loss_of_the_sampled_logits(name, options, formula):
    model, batch = model_and_batch()

    loss = model.training_loss(batch, name, **options)

    assert loss.item() == pytest.approx(formula(model.sampled_logits(batch), batch).item())


@pytest.mark.parametrize("per", ["sequence", "batch"])
@pytest.mark.parametrize("loss", ["bce", "gbce", "bpr", "sampled_softmax"])
def test_shared_negatives_count_as_if_each_event_had_them(loss, per):
    model, batch = model_and_batch()
    rows = {"sequence": 3, "batch": 1}[per]
    # Positives are up to 10, negatives from 11: none collide.
    batch = replace(batch, positives=(batch.positives + 1) // 2)
    batch = replace(batch, negatives=torch.arange(11, 11 + 3 * rows).view(rows, 3))
    shared = replace(batch, negatives_per=per)
    own = replace(batch, negatives=shared.negatives_of_tokens())
    options = {"negative_log_probs": torch.arange(21.0).log1p()}

    assert torch.equal(model.sampled_logits(shared), model.sampled_logits(own))
    torch.testing.assert_close(
        model.training_loss(shared, loss, **options), model.training_loss(own, loss, **options)
    )


def test_training_loss_over_the_catalogue_scores_every_item():
    model, batch = model_and_batch()
    everything = replace(batch, negatives=torch.arange(1, 21).expand(12, 20))
    logits = model.sampled_logits(everything)

    loss = model.training_loss(replace(batch, negatives=None), "softmax")

    expected = (logits[:, 1:].logsumexp(1) - logits[:, 0]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_unknown_loss_is_named():
    model, batch = model_and_batch()
    with pytest.raises(ValueError, match="loss must be one of .*, got 'hinge'"):
        model.training_loss(batch, "hinge")


def test_xavier_tables_have_the_bound_of_their_shape():
    model = SASREC(
        item_num=500, seq_max_len=9, embedding_dim=16, conv_dims=[16, 16], embedding_init="xavier"
    )
    for table in (model.item_embedding_layer.weight, model.positional_embedding_layer.weight):
        bound = (6 / sum(table.shape)) ** 0.5
        assert 0.9 * bound < table.abs().max() <= bound
    assert not model.item_embedding_layer.weight[0].any()
