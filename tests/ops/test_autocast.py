"""`torch.autocast`: hidden states in its type, tables in theirs, and errors within the one policy."""

from typing import get_args

import pytest
import torch
from support.factories import random_batch, tiny_model
from support.tolerances import relative_error

from ssept_ext import ops
from ssept_ext.network.config import Architecture
from ssept_ext.network.losses import bce

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def model(architecture="recommenders", backend="auto", seed=0):
    torch.manual_seed(seed)
    return tiny_model(
        item_num=40,
        user_num=9,
        seq_max_len=20,
        num_blocks=2,
        item_embedding_dim=24,
        user_embedding_dim=8,
        attention_num_heads=2,
        dropout_rate=0.2,
        architecture=architecture,
        backend=backend,
    )


def batch(device):
    sizes = {"item_num": 40, "user_num": 9, "seq_max_len": 20, "num_negatives": 3}
    generator = torch.Generator().manual_seed(1)
    return random_batch(5, 0, 20, 11, **sizes, generator=generator).to(device)


def logits_and_gradient(m, b, dtype=None):
    """Under autocast to `dtype`, with the same dropout each time; the gradients of all parameters in a row."""
    torch.manual_seed(5)
    with torch.autocast(b.items.device.type, dtype, enabled=dtype is not None):
        logits = m.sampled_logits(b)
        loss = bce(logits, b.positives)
    gradients = torch.autograd.grad(loss, list(m.parameters()))
    assert [g.dtype for g in gradients] == [p.dtype for p in m.parameters()]
    return logits, torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("device", DEVICES)
def test_a_training_step_is_as_exact_as_plain_pytorch_under_autocast(device, architecture, dtype):
    b = batch(device)

    def of_many_models(convert=lambda m: m, backend="auto", dtype=None):
        # One model's error is doubled by a single ReLU on the other side of 0.
        models = (convert(model(architecture, backend, seed).to(device)) for seed in range(8))
        results = [logits_and_gradient(m, b, dtype) for m in models]
        return [torch.cat([x.flatten() for x in kind]) for kind in zip(*results, strict=True)]

    exact = of_many_models(lambda m: m.double())
    actual = of_many_models(dtype=dtype)
    plain = of_many_models(backend="reference", dtype=dtype)
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert relative_error(x, y) <= 2 * relative_error(z, y) + 1e-4


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_hidden_states_are_of_autocasts_type_and_logits_of_the_tables(backend):
    m, b = model(backend=backend).eval(), batch("cpu")
    tables = (m.item_embedding_layer.weight, m.user_embedding_layer.weight)
    where = (b.positions, b.cu_seqlens)
    norm = m.layer_normalization
    with torch.autocast("cpu", torch.bfloat16):
        x = ops.user_item_embedding(
            *tables, m.positional_embedding_layer.weight, b.items, b.users, *where, backend=backend
        )
        normal = ops.position_layer_norm(x.float(), norm.gamma, norm.beta, *where, backend=backend)
        ffn = m.encoder.enc_layers[0].ffn
        layers = [
            p for layer in (ffn.conv_layer1, ffn.conv_layer2) for p in (layer.weight, layer.bias)
        ]
        summed = ops.feed_forward(x.float(), *layers, backend=backend)
        logits = ops.sampled_logits(x, *tables, b.negatives, b.users, b.cu_seqlens, backend=backend)
    assert [y.dtype for y in (x, normal, summed, logits)] == [torch.bfloat16] * 3 + [torch.float32]
    exact = ops.sampled_logits(
        x.double(), *(t.double() for t in tables), b.negatives, b.users, b.cu_seqlens
    )
    assert relative_error(logits, exact) < 2e-6


def test_a_float64_model_is_left_alone_by_autocast():
    m, b = model().double(), batch("cpu")
    with_autocast = logits_and_gradient(m, b, torch.bfloat16)
    for x, y in zip(with_autocast, logits_and_gradient(m, b), strict=True):
        assert torch.equal(x, y)
