"""SASREC and SSEPT: recommenders' numbers, the packed encoder, and what bad input meets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tolerances import relative_error

from ssept_ext import SASREC, SSEPT, PackedBatch, pack
from ssept_ext.network import losses
from ssept_ext.ops import reference

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
BACKENDS = ["reference", "auto"]
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


class Golden:
    """A model of recommenders: constructor arguments, parameters, inputs and, in float64, what it computed."""

    def __init__(self, path):
        self.arrays = {k: torch.as_tensor(v) for k, v in np.load(path).items() if k != "config"}
        self.config = json.loads(str(np.load(path)["config"]))
        self.config["class"] = {"SASREC": SASREC, "SSEPT": SSEPT}[self.config["class"]]

    def under(self, prefix):
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def model(self, dtype=torch.float64, backend="auto"):
        arguments = {k: v for k, v in self.config.items() if k != "class"}
        model = self.config["class"](**arguments, backend=backend).to(dtype)
        model.load_state_dict(self.under("param/"))
        return model


every_golden = pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", LIMITS, ids=str)


@every_dtype
@every_backend
@every_golden
def test_logits_and_loss_are_those_of_recommenders(path, backend, dtype):
    golden = Golden(path)
    model = golden.model(dtype, backend)
    positive, negative, is_target = model(golden.under("in/"))
    loss = model.loss_function(positive, negative, is_target)
    out = golden.under("out/")
    assert positive.shape == negative.shape == (len(is_target), 1)
    assert torch.equal(is_target, out["istarget"].to(dtype))
    assert relative_error(positive[:, 0], out["pos_logits"]) < LIMITS[dtype]
    assert relative_error(negative[:, 0], out["neg_logits"]) < LIMITS[dtype]
    assert relative_error(loss, out["loss"]) < LIMITS[dtype]


@every_dtype
@every_backend
@every_golden
def test_every_gradient_is_that_of_recommenders(path, backend, dtype):
    golden = Golden(path)
    model = golden.model(dtype, backend)
    model.loss_function(*model(golden.under("in/"))).backward()
    expected = golden.under("grad/")
    assert {name for name, _ in model.named_parameters()} == set(expected)
    largest = max(x.norm().item() for x in expected.values())
    for name, parameter in model.named_parameters():
        exact = expected[name].reshape(parameter.shape)
        if exact.norm() > 1e-10 * largest:
            assert relative_error(parameter.grad, exact) < LIMITS[dtype], name
        else:  # keys' biases: softmax does not see them, and only rounding is left
            assert parameter.grad.double().norm() < LIMITS[dtype] * largest, name


@every_dtype
@every_backend
@every_golden
def test_predict_is_that_of_recommenders(path, backend, dtype):
    golden = Golden(path)
    inputs = golden.under("in/")
    inputs["user"] = inputs.pop("users")
    scores = golden.model(dtype, backend).predict({k: v.numpy() for k, v in inputs.items()})
    assert relative_error(scores, golden.under("out/")["predict"]) < LIMITS[dtype]


@every_golden
def test_state_dicts_of_recommenders_load_with_their_unused_layer_norms(path):
    golden = Golden(path)
    model = golden.model()
    state = golden.under("param/")
    width = model.config.hidden_size
    for block in range(model.config.num_blocks):
        for norm in ("layernorm1", "layernorm2"):
            for name in ("gamma", "beta"):
                key = f"encoder.enc_layers.{block}.{norm}.{name}"
                state[key] = torch.zeros(model.seq_max_len, width)
    model.load_state_dict(state)
    assert (
        state["encoder.enc_layers.0.ffn.conv_layer1.weight"].dim() == 3
    )  # the caller's is untouched


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


def tiny(cls=SSEPT, **changes):
    arguments = {
        "item_num": 20,
        "seq_max_len": 6,
        "num_blocks": 2,
        "embedding_dim": 4,
        "attention_num_heads": 2,
        "dropout_rate": 0.0,
    }
    if cls is SSEPT:
        arguments |= {"user_num": 5, "conv_dims": [12, 8]}
    else:
        arguments |= {"conv_dims": [8, 4]}
    return cls(**arguments | changes)


def padded_inputs(**changes):
    inputs = {
        "users": np.array([[1], [5], [2]]),
        "input_seq": np.array([[0, 0, 3, 4, 5, 6], [1, 2, 3, 4, 5, 20], [0, 0, 0, 0, 0, 7]]),
        "positive": np.array([[0, 0, 4, 5, 6, 7], [2, 3, 4, 5, 20, 9], [0, 0, 0, 0, 0, 8]]),
        "negative": np.array([[0, 0, 9, 9, 9, 9], [8, 9, 8, 9, 8, 10], [0, 0, 0, 0, 0, 1]]),
    }
    return inputs | changes


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


def perturbed(model):
    """Random values everywhere, so that no term hides behind a zero or a one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.double()


@pytest.mark.parametrize("architecture", ["recommenders", "original"])
def test_the_model_computes_the_formulas_of_its_architecture(architecture):
    model = perturbed(tiny(architecture=architecture, item_embedding_dim=6, user_embedding_dim=2))
    user, items = 2, torch.tensor([3, 4, 5, 3])
    candidates = torch.tensor([[7, 1, 20]])
    seq = torch.tensor([[0, 0, *items.tolist()]])
    scores = model.predict({"user": [user], "input_seq": seq, "candidate": candidates})
    h = plain_hidden_states(model, user, items)[-1]
    item, users = model.item_embedding_layer.weight, model.user_embedding_layer.weight
    expected = item[candidates[0]] @ h[:6] + h[6:] @ users[user] * 2**0.5
    assert relative_error(scores[0], expected) < 1e-12


def test_predict_of_the_newest_token_is_the_encoders_last_row():
    model = perturbed(tiny())
    inputs = padded_inputs(positive=np.full((3, 6), 4), negative=np.full((3, 6), 9))
    positive, negative, _ = model(inputs)
    newest = torch.cat([positive.view(3, 6)[:, -1:], negative.view(3, 6)[:, -1:]], 1)
    candidates = {"user": inputs["users"], "candidate": np.array([[4, 9]] * 3)}
    assert relative_error(model.predict(inputs | candidates), newest) < 1e-12


def test_fewer_columns_than_seq_max_len_are_the_newest():
    model = perturbed(tiny())
    inputs = {"user": [1], "candidate": np.arange(1, 21)[None]}
    whole = model.predict(inputs | {"input_seq": [[0, 0, 0, 3, 4, 5]]})
    cut = model.predict(inputs | {"input_seq": [[3, 4, 5]]})
    assert torch.equal(cut, whole)


def test_logits_at_padding_are_exactly_zero():
    positive, negative, is_target = tiny()(padded_inputs())
    assert is_target.sum() == 11
    assert (positive[is_target == 0] == 0).all()
    assert (negative[is_target == 0] == 0).all()
    assert (positive[is_target == 1] != 0).all()


def test_a_row_of_padding_gives_finite_scores_and_gradients():
    model = tiny()
    rows = {k: np.zeros_like(v) for k, v in padded_inputs().items()}
    inputs = {k: np.concatenate([v, rows[k]]) for k, v in padded_inputs().items()}
    model.loss_function(*model(inputs)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    scores = model.predict({"user": [0], "input_seq": [[0] * 6], "candidate": [[1, 2]]})
    assert torch.isfinite(scores).all()


def test_each_row_is_scored_with_its_own_user_also_where_one_is_empty():
    model = perturbed(tiny())
    seqs, users = np.array([[0, 0, 0, 0, 3, 4], [0] * 6]), np.array([1, 2])  # two tokens, two rows
    candidates = np.array([[7, 8], [7, 8]])
    together = model.predict({"user": users, "input_seq": seqs, "candidate": candidates})
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = {"user": users[one], "input_seq": seqs[one], "candidate": candidates[one]}
        assert relative_error(together[one], model.predict(alone)) < 1e-12


def test_dropout_is_on_in_training_only():
    model = tiny(dropout_rate=0.5)
    inputs = padded_inputs()
    assert not torch.equal(model(inputs)[0], model(inputs)[0])
    assert torch.equal(model(inputs, training=False)[0], model(inputs, training=False)[0])
    model.eval()
    assert torch.equal(model(inputs)[0], model(inputs)[0])


def test_dropout_follows_torchs_seed_and_is_the_same_on_every_backend():
    logits = []
    for backend in BACKENDS:
        torch.manual_seed(3)
        model = tiny(dropout_rate=0.3, backend=backend).double()
        logits.append(model(padded_inputs())[0])
    assert relative_error(logits[1], logits[0]) < 1e-12


def test_no_two_dropouts_of_a_forward_pass_share_a_mask(monkeypatch):
    sites = []
    original = reference.dropout_keep

    def recording(*args):
        sites.append(args[-1])
        return original(*args)

    monkeypatch.setattr(reference, "dropout_keep", recording)
    tiny(dropout_rate=0.3, backend="reference")(padded_inputs())
    # The embedding, then attention and two in the feed-forward layer of each of two blocks.
    assert sorted(sites) == [0, 1, 2, 3, 4, 5, 6]


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


def test_defaults_are_those_of_recommenders():
    config = SSEPT(item_num=3, user_num=3).config
    assert (config.seq_max_len, config.num_blocks, config.embedding_dim) == (100, 2, 100)
    assert (config.dropout_rate, config.l2_reg, config.num_neg_test) == (0.5, 0.0, 100)
    assert (config.user_embedding_dim, config.item_embedding_dim) == (100, 100)
    assert list(config.conv_dims) == [200, 200]
    assert list(SASREC(item_num=3).config.conv_dims) == [100, 100]


def test_create_combined_dataset_left_pads_and_keeps_the_newest():
    inputs, target = tiny().create_combined_dataset(
        [3, 4], [[1, 2], [1, 2, 3, 4, 5, 6, 7]], [[2, 3], [2, 3, 4, 5, 6, 7, 8]], [[9, 9], [9] * 7]
    )
    assert inputs["users"].tolist() == [[3], [4]]
    assert inputs["input_seq"].tolist() == [[0, 0, 0, 0, 1, 2], [2, 3, 4, 5, 6, 7]]
    assert inputs["positive"][0].tolist() == [0, 0, 0, 0, 2, 3]
    assert target[:, 0].tolist() == [1] * 12 + [0] * 12


def test_packing_drops_zeros_between_events_and_keeps_columns_as_positions():
    batch = pack(torch.tensor([1, 2]), torch.tensor([[0, 5, 0, 6], [0, 0, 0, 0]]))
    assert batch.items.tolist() == [5, 6]
    assert batch.positions.tolist() == [1, 3]
    assert batch.cu_seqlens.tolist() == [0, 2, 2]
    assert batch.max_seqlen == 2


def test_packing_keeps_one_or_many_negatives():
    seq = torch.tensor([[0, 5, 6], [0, 0, 0]])
    many = torch.arange(12).view(2, 3, 2)
    one = pack(torch.tensor([1, 2]), seq, seq, many[..., 0])
    assert one.negatives.tolist() == [[2], [4]]
    assert pack(torch.tensor([1, 2]), seq, seq, many).negatives.tolist() == [[2, 3], [4, 5]]
    assert pack(torch.tensor([2]), seq[1:], seq[1:], seq[1:]).negatives.shape[0] == 0


def test_a_model_in_half_precision_scores_in_float32():
    model = tiny().bfloat16()
    batch = pack(torch.tensor([1]), torch.tensor([[5, 6]]))
    assert model.score(batch, torch.tensor([[1, 2]])).dtype == torch.float32


def test_a_packed_batch_without_targets_cannot_be_trained_on():
    batch = pack(torch.tensor([1]), torch.tensor([[5, 6]]))
    assert isinstance(batch, PackedBatch)
    with pytest.raises(ValueError, match="batch must have positives and negatives"):
        tiny().sampled_logits(batch)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"unknown": 1}, TypeError, 'SSEPT has no argument "unknown"'),
        ({"item_num": 0}, ValueError, "item_num must be an integer of at least 1, got 0"),
        ({"item_num": 2.0}, ValueError, "item_num must be an integer of at least 1, got 2.0"),
        ({"user_num": True}, ValueError, "user_num must be an integer of at least 1, got True"),
        ({"seq_max_len": -1}, ValueError, "seq_max_len must be an integer .* got -1"),
        ({"num_blocks": 0}, ValueError, "num_blocks must be"),
        ({"embedding_dim": "4"}, ValueError, "embedding_dim must be an integer .* got '4'"),
        ({"user_embedding_dim": 0}, ValueError, "user_embedding_dim must be .* got 0"),
        ({"num_neg_test": 0}, ValueError, "num_neg_test must be"),
        ({"conv_dims": [8, 9]}, ValueError, r"conv_dims .* the second the model's 8, got \[8, 9\]"),
        ({"conv_dims": [8]}, ValueError, r"conv_dims must be two widths.* got \[8\]"),
        ({"attention_num_heads": 3}, ValueError, "attention_num_heads must divide .* 8, got 3"),
        ({"dropout_rate": 1.0}, ValueError, r"dropout_rate must be in \[0, 1\), got 1.0"),
        ({"dropout_rate": float("nan")}, ValueError, "dropout_rate must be in .* got nan"),
        ({"l2_reg": -1e-3}, ValueError, "l2_reg must be finite and at least 0, got -0.001"),
        ({"architecture": "other"}, ValueError, 'architecture must be one of .* got "other"'),
        ({"backend": "gpu"}, ValueError, 'backend must be one of .* got "gpu"'),
        (
            {"embedding_dim": 300, "conv_dims": [4, 600]},
            ValueError,
            "heads of at most 256 features, got 2 heads of 300",
        ),
    ],
)
def test_a_wrong_constructor_argument_is_named(changes, error, match):
    with pytest.raises(error, match=match):
        tiny(**changes)


@pytest.mark.parametrize(
    ("cls", "missing"), [(SASREC, "item_num"), (SSEPT, "user_num")], ids=["SASREC", "SSEPT"]
)
def test_a_missing_constructor_argument_is_named(cls, missing):
    arguments = {"item_num": 3, "user_num": 3} if cls is SSEPT else {"item_num": 3}
    del arguments[missing]
    with pytest.raises(TypeError, match=f"{cls.__name__} needs the argument {missing}"):
        cls(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"input_seq": np.full((3, 6), 21)}, IndexError, "input_seq has id 21, .* 21 rows"),
        ({"positive": np.full((3, 6), -1)}, IndexError, "positive has id -1, outside"),
        ({"negative": np.full((3, 6), 99)}, IndexError, "negative has id 99, outside"),
        ({"users": np.array([[1], [6], [1]])}, IndexError, "users has id 6, outside .* 6 rows"),
        ({"users": np.array([[1], [2]])}, ValueError, "users must have 3 rows"),
        ({"users": np.ones((3, 2), int)}, ValueError, "users must have"),
        ({"input_seq": np.ones((3, 6))}, ValueError, "input_seq must hold integers, got .*float64"),
        ({"input_seq": np.ones(6, int)}, ValueError, "input_seq must have two dimensions"),
        ({"positive": np.ones((3, 5), int)}, ValueError, r"positive must have shape \(3, 6\)"),
        (
            {k: np.ones((3, 7), int) for k in ("input_seq", "positive", "negative")},
            ValueError,
            "input_seq has 7 columns, more than seq_max_len 6",
        ),
    ],
)
def test_wrong_model_input_is_named(changes, error, match):
    with pytest.raises(error, match=match):
        tiny()(padded_inputs(**changes))


def test_a_missing_model_input_is_named():
    inputs = padded_inputs()
    del inputs["users"]
    with pytest.raises(ValueError, match='the input lacks "users"; it has input_seq'):
        tiny()(inputs)
    positive, _, _ = tiny(SASREC)(inputs)  # has no users
    assert positive.shape == (18, 1)


@pytest.mark.parametrize(
    ("candidate", "error", "match"),
    [
        (np.array([[21]] * 3), IndexError, "candidate has id 21"),
        (np.array([[0.5]] * 3), ValueError, "candidate must hold integers"),
        (np.array([[1]] * 2), ValueError, "candidate must have 3 rows, as input_seq has, got 2"),
    ],
)
def test_wrong_candidates_are_named(candidate, error, match):
    inputs = padded_inputs()
    with pytest.raises(error, match=match):
        tiny().predict(
            {"user": inputs["users"], "input_seq": inputs["input_seq"], "candidate": candidate}
        )


def one_batch(model, num_negatives=3):
    lengths = [4, 1, 7]
    num_tokens = sum(lengths)
    return PackedBatch(
        users=torch.tensor([1, 3, 2]),
        items=torch.randint(1, model.item_num + 1, (num_tokens,)),
        positions=torch.cat([torch.arange(7 - length, 7) for length in lengths]),
        cu_seqlens=torch.tensor([0, 4, 5, 12], dtype=torch.int32),
        max_seqlen=7,
        positives=torch.randint(1, model.item_num + 1, (num_tokens,)),
        negatives=torch.randint(1, model.item_num + 1, (num_tokens, num_negatives)),
    )


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
    ],
)
def test_training_loss_is_the_loss_of_the_sampled_logits(name, options, formula):
    model = SSEPT(
        item_num=20, user_num=3, seq_max_len=7, embedding_dim=4, conv_dims=[8, 8], dropout_rate=0.0
    )
    batch = one_batch(model)

    loss = model.training_loss(batch, name, **options)

    assert loss.item() == pytest.approx(formula(model.sampled_logits(batch), batch).item())


def test_training_loss_over_the_catalogue_scores_every_item():
    model = SSEPT(
        item_num=20, user_num=3, seq_max_len=7, embedding_dim=4, conv_dims=[8, 8], dropout_rate=0.0
    )
    batch = one_batch(model)
    everything = replace(batch, negatives=torch.arange(1, 21).expand(12, 20))
    logits = model.sampled_logits(everything)

    loss = model.training_loss(replace(batch, negatives=None), "softmax")

    expected = (logits[:, 1:].logsumexp(1) - logits[:, 0]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_unknown_loss_is_named():
    model = SSEPT(item_num=20, user_num=3, seq_max_len=7, embedding_dim=4, conv_dims=[8, 8])
    with pytest.raises(ValueError, match='loss must be one of .*, got "hinge"'):
        model.training_loss(one_batch(model), "hinge")


def test_xavier_tables_have_the_bound_of_their_shape():
    model = SASREC(
        item_num=500, seq_max_len=9, embedding_dim=16, conv_dims=[16, 16], embedding_init="xavier"
    )
    for table in (model.item_embedding_layer.weight, model.positional_embedding_layer.weight):
        bound = (6 / sum(table.shape)) ** 0.5
        assert 0.9 * bound < table.abs().max() <= bound
    assert not model.item_embedding_layer.weight[0].any()
