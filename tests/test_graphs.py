"""Training steps on buffers of fixed size, as a CUDA graph needs them, and by such a graph."""

import ast
import copy
import inspect

import pytest
import torch
from tolerances import assert_close
from torch._dynamo.testing import CompileCounterWithBackend

from ssept_ext import SSEPT, PackedBatch, graphs, layers, losses, sse
from ssept_ext.graphs import BatchShape, GraphedStep, training_step, training_work
from ssept_ext.ops import _tables

SHAPE = BatchShape(capacity=64, batch_size=4, num_negatives=2)
on_gpu = pytest.mark.cuda


def model(dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return SSEPT(
        sse_user_prob=0.5,
        sse_item_prob=0.2,
        sse_joint=True,
        item_num=30,
        user_num=9,
        seq_max_len=20,
        item_embedding_dim=6,
        user_embedding_dim=4,
        attention_num_heads=2,
        conv_dims=[5, 10],
        dropout_rate=0.3,
    ).to(device, dtype)


def batch(*lengths, num_negatives=2):
    ids = torch.randint(1, 31, (sum(lengths), 2 + num_negatives))
    return PackedBatch(
        users=torch.randint(1, 10, (len(lengths),)),
        items=ids[:, 0].contiguous(),
        positions=torch.cat([torch.arange(20 - n, 20) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        positives=ids[:, 1].contiguous(),
        negatives=ids[:, 2:].contiguous(),
    )


BATCHES = [(5, 1, 17, 9), (20, 20, 20, 4), (1, 0, 0, 1), (20, 20, 20, 20), (3, 4, 5, 6)]
"""One fills the capacity, one exceeds it."""


def adam(m):
    return torch.optim.Adam(m.parameters(), fused=True)


def work_of(m, optimizer):
    return training_work(optimizer, lambda batch, seed: m.training_loss(batch, seed=seed))


def graphed(m, optimizer, work=None):
    work = work or work_of(m, optimizer)
    return GraphedStep(work, optimizer, m.device, m.seq_max_len, SHAPE)


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
    batches = [batch(*lengths) for lengths in BATCHES * 2]
    other = copy.deepcopy(m)
    expected = by_steps_of_the_model(other, batches)
    step = make_step(m, adam(m))
    torch.manual_seed(7)
    actual = [step(b).clone() for b in batches]
    limit_of(torch.stack(actual), torch.stack(expected))
    # Together, as the gradient of the keys' bias is nothing but rounding.
    limit_of(*(torch.nn.utils.parameters_to_vector(x.parameters()) for x in (m, other)))


def assert_equal(x, y):
    assert torch.equal(x, y)


def test_spare_capacity_changes_neither_losses_nor_parameters():
    assert_same_training(graphed, model())


def test_a_batch_of_another_shape_is_worked_on_as_it_is():
    worked_on = []
    m = model()
    step = graphed(m, adam(m), lambda batch, seed: worked_on.append(batch) or torch.tensor(0.0))
    fitting, others = (
        batch(5, 1, 17, 9),
        [
            batch(20, 20, 20, 20),
            batch(3, 4, 5),
            batch(3, 4, 5, 6, num_negatives=3),
        ],
    )
    for b in (fitting, *others):
        step(b)
    assert len(worked_on[0].items) == SHAPE.capacity
    assert all(torch.equal(x.items, y.items) for x, y in zip(worked_on[1:], others, strict=True))


def test_a_buffer_forgets_the_batch_before():
    buffer = graphs._Buffer(SHAPE, 20, torch.device("cpu"))
    buffer.fill(batch(20, 20, 20, 4), torch.tensor([5]))
    small = batch(1, 0, 2, 1)
    buffer.fill(small, torch.tensor([6]))
    assert buffer.seed.item() == 6
    assert torch.equal(buffer.batch.cu_seqlens, small.cu_seqlens)
    for name in ("items", "positions", "positives", "negatives"):
        assert torch.equal(getattr(buffer.batch, name)[:4], getattr(small, name))
        assert (getattr(buffer.batch, name)[4:] == 0).all()


def test_a_shape_leaves_room_for_longer_batches_but_not_for_more_than_there_can_be():
    shape = BatchShape.like(batch(5, 1, 17, 9), seq_max_len=20)
    assert 32 + 2 * 12 <= shape.capacity <= 128
    assert (shape.batch_size, shape.num_negatives) == (4, 2)
    assert shape.capacity % 64 == 0
    assert BatchShape.like(batch(20, 0, 20, 0), seq_max_len=20).capacity == 128


def test_on_a_cpu_a_step_is_eager():
    def make_step(m, o):
        return training_step(work_of(m, o), o, m.device, m.seq_max_len)

    assert_same_training(make_step, model(), assert_equal)


def test_the_step_names_nothing_that_makes_the_host_wait_for_the_device():
    waits = {"item", "tolist", "nonzero", "cpu", "masked_select", "unique", "numpy", "any", "all"}
    functions = [
        SSEPT.training_loss,
        SSEPT._encode_targets,
        SSEPT._sampled_logits,
        SSEPT._encode,
        sse.replace_ids,
        sse._is_last,
        SSEPT._score,
        *(
            getattr(layers, name).forward
            for name in ("Encoder", "EncoderLayer", "MultiHeadAttention")
        ),
        layers.PointWiseFeedForward.forward,
        layers.LayerNormalization.forward,
        *(losses.bce, losses.gbce, losses.bpr, losses.sampled_softmax, losses.softmax),
        *(losses._TiledSoftmax.forward, losses._TiledSoftmax.backward),
        _tables.gradient_of_user_table,
    ]
    for function in functions:
        source = inspect.cleandoc("\n" + inspect.getsource(function))
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & waits, function.__qualname__


def test_compiling_the_model_for_changing_lengths_makes_at_most_two_graphs():
    m = model().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m.sampled_logits, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 3, 4), (4, 9, 2), (1, 12, 3), (7, 7, 20), (2, 15, 9)]:
        b = batch(*lengths)
        assert_close(compiled(b), m.sampled_logits(b))
    assert counter.frame_count <= 2


@on_gpu
def test_replayed_steps_train_as_eager_ones():
    assert_same_training(graphed, model(device="cuda"))


@on_gpu
def test_a_step_on_a_gpu_never_waits_for_it():
    m = model(torch.float32, "cuda")
    step = graphed(m, adam(m))
    for lengths in BATCHES[:3] * 2:
        step(batch(*lengths))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lengths in BATCHES[:3]:
            step(batch(*lengths))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_where_the_capture_fails_a_warning_says_why_and_steps_are_eager():
    m = model(torch.float32, "cuda")
    optimizer = adam(m)

    def waiting_loss(batch, seed):
        value = m.training_loss(batch, seed=seed)
        value.item()
        return value

    step = graphed(m, optimizer, training_work(optimizer, waiting_loss))
    with pytest.warns(UserWarning, match="eager steps, as capturing one in a CUDA graph failed"):
        values = [step(batch(5, 1, 17, 9)).item() for _ in range(6)]
    assert all(v > 0 for v in values)
