"""A model with dropout and SSE, and its training by steps that are graphed or not."""

import copy
from dataclasses import replace

import torch
from support.factories import random_batch, tiny_model
from support.tolerances import assert_close

from ssept_ext.data.sse import replace_ids
from ssept_ext.training.batch_shape import BatchShape
from ssept_ext.training.cuda_graph import CudaGraphStep
from ssept_ext.training.step import draw_seeds, eager_step

SEED = torch.tensor([3])
SHAPE = BatchShape(capacity=64, batch_size=4, num_negatives=2)


def model(dtype=torch.float64, device="cpu", **changes):
    torch.manual_seed(0)
    return tiny_model(
        item_num=30,
        user_num=9,
        seq_max_len=20,
        num_blocks=2,
        item_embedding_dim=6,
        user_embedding_dim=4,
        attention_num_heads=2,
        ffn_dim=5,
        dropout_rate=0.3,
        sse_user_prob=0.5,
        sse_item_prob=0.2,
        sse_joint=True,
        **changes,
    ).to(device, dtype)


def batch(*lengths, num_negatives=2, timed=False):
    drawn = random_batch(
        *lengths, item_num=30, user_num=9, seq_max_len=20, num_negatives=num_negatives
    )
    if not timed:
        return drawn
    times = torch.randint(10**9, (2, sum(lengths)))
    return replace(drawn, times=times[0], target_times=times.sum(0))


BATCHES = [(5, 1, 17, 9), (20, 20, 20, 4), (1, 0, 0, 1), (20, 20, 20, 20), (3, 4, 5, 6)]
"""One fills the capacity, one exceeds it."""


def adam(m):
    return torch.optim.Adam(m.parameters(), fused=True)


def work_of(m, optimizer):
    return eager_step(optimizer, lambda batch, seed: m.training_loss(batch, seed=seed))


def graphed(m, optimizer, work=None):
    work = work or work_of(m, optimizer)
    shape = replace(SHAPE, has_times=m.config.time_bias)
    return CudaGraphStep(work, optimizer, m.device, m.seq_max_len, shape)


def by_steps_of_the_model(m, batches):
    """As one would write them, seeds drawn by the model itself."""
    optimizer = adam(m)
    torch.manual_seed(7)
    losses = []
    for b in batches:
        optimizer.zero_grad()
        loss = m.training_loss(b.to(m.device))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def assert_same_training(make_step, m, limit_of=assert_close):
    """Losses and parameters after steps that drop the same elements."""
    batches = [batch(*lengths, timed=m.config.time_bias) for lengths in BATCHES * 2]
    other = copy.deepcopy(m)
    expected = by_steps_of_the_model(other, batches)
    step = make_step(m, adam(m))
    torch.manual_seed(7)
    actual = []
    for b in batches:
        seed = draw_seeds(1)
        actual.append(step(replace_ids(b, m.config.sse, int(seed)), seed).clone())
    limit_of(torch.stack(actual), torch.stack(expected))
    # Together, as the gradient of the keys' bias is nothing but rounding.
    limit_of(*(torch.nn.utils.parameters_to_vector(x.parameters()) for x in (m, other)))
