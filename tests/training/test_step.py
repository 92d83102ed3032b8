"""One step of training, on a stub model, against Adam written out."""

import math

import numpy as np
import pytest
import torch
from support.ring import (
    NUM_USERS,
    PaddedSampler,
    Stub,
    make_sampler,
    train,
)
from torch.nn import functional as F

from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.run import Run

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.mark.parametrize(
    ("l2_reg", "options"),
    [
        (0.0, {}),
        (0.1, {}),
        (0.0, {"adam_betas": (0.5, 0.6)}),
        (0.1, {"max_grad_norm": 0.01}),
        (0.0, {"warmup_steps": 2}),
        (0.0, {"schedule": "cosine", "warmup_steps": 2}),
    ],
    ids=str,
)
def test_a_step_is_that_of_adam_with_the_l2_term_of_the_tables_only(dataset, l2_reg, options):
    model, expected = Stub(l2_reg=l2_reg), Stub()
    history = train(model, dataset, num_epochs=1, batch_size=2, **options)

    betas = options.get("adam_betas", (0.9, 0.999))
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.01, betas=betas, eps=1e-7)
    factors = [1.0] * 6
    if "warmup_steps" in options:
        factors[0] = 0.5
    if "schedule" in options:
        factors[2:] = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    losses = []
    for batch, factor in zip(model.batches, factors, strict=True):
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        logits = expected.sampled_logits(batch)
        target = batch.positives != 0
        loss = (F.softplus(-logits[target, 0]) + F.softplus(logits[target, 1])).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        limit = options.get("max_grad_norm")
        if limit is None:
            (loss + 0.5 * l2_reg * expected.table.square().sum()).backward()
        else:  # clips the gradient of the data; Adam adds that of the L2 term
            loss.backward()
            gradients = [expected.table.grad, expected.stretch.grad]
            norm = sum(g.square().sum() for g in gradients) ** 0.5
            assert norm > limit
            for gradient in gradients:
                gradient *= limit / norm
            expected.table.grad += l2_reg * expected.table.detach()
        optimizer.step()

    assert len(losses) == 6
    assert history["loss"] == pytest.approx([np.mean(losses)], rel=1e-5)
    torch.testing.assert_close(model.table, expected.table, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.stretch, expected.stretch, rtol=1e-4, atol=1e-6)


def test_a_training_leaves_no_gradients_behind(dataset):
    model = Stub()

    train(model, dataset)

    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("warmup_steps", "writes"), [(0, 0), (3, 3)])
def test_a_rate_on_a_device_is_written_where_it_changes(dataset, warmup_steps, writes):
    training = make_training(dataset, TrainingOptions(warmup_steps=warmup_steps))
    group = training.optimizer.param_groups[0]
    group["lr"] = torch.tensor(0.01)  # as on a GPU
    with make_sampler(dataset) as sampler:
        for _ in range(6):
            training.take_step(sampler.next_packed())

    assert group["lr"]._version == writes
    assert group["lr"].item() == pytest.approx(0.01)


def make_training(dataset, options):
    loop = LoopOptions(num_epochs=1, learning_rate=0.01)
    return Run(Stub().train(), make_sampler(dataset), loop, options, 6, torch.Generator())


def test_the_lengths_of_the_data_reach_the_step(dataset, monkeypatch):
    reached = []
    monkeypatch.setattr(
        "ssept_ext.training.run.training_step", lambda *a, **_: reached.append(a[-1])
    )

    make_training(dataset, TrainingOptions())
    sampler = PaddedSampler(make_sampler(dataset))
    Run(Stub(), sampler, LoopOptions(), TrainingOptions(), 1, torch.Generator())

    assert reached[0].tolist() == [6] * NUM_USERS
    assert reached[1] is None


@pytest.mark.parametrize(("precision", "tokens"), [("bf16", 152), ("float32", 150)])
def test_bfloat16_products_on_a_cpu_see_few_numbers_of_rows(dataset, precision, tokens):
    """oneDNN compiles one for each, which took a third of the time of steps on short histories."""
    model = Stub()

    with make_sampler(dataset, batch_size=25) as sampler:
        train(model, dataset, sampler, num_epochs=1, precision=precision)

    assert {len(batch.items) for batch in model.batches} == {tokens}
