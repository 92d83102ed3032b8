"""Training steps on buffers of fixed size, as a CUDA graph needs them, and by such a graph."""

import ast
import inspect
from dataclasses import replace
from typing import get_args

import pytest
import torch
from support.graphed_steps import (
    BATCHES,
    SEED,
    SHAPE,
    adam,
    assert_same_training,
    batch,
    graphed,
    model,
    work_of,
)
from support.tolerances import assert_close
from torch._dynamo.testing import CompileCounterWithBackend

from ssept_ext import SSEPT, ops
from ssept_ext.data.packed import number_rows
from ssept_ext.network import encoder, layers, losses
from ssept_ext.network.config import Architecture
from ssept_ext.network.scores import Scores
from ssept_ext.training import cuda_graph
from ssept_ext.training.batch_shape import BatchShape
from ssept_ext.training.cuda_graph import (
    training_step,
)

every_architecture = pytest.mark.parametrize("architecture", get_args(Architecture))


def assert_equal(x, y):
    assert torch.equal(x, y)


@every_architecture
def test_spare_capacity_changes_neither_losses_nor_parameters(architecture):
    assert_same_training(graphed, model(architecture=architecture))


def test_spare_capacity_changes_nothing_for_a_model_with_two_tables_of_items():
    assert_same_training(graphed, model(tie_item_embeddings=False))


def test_spare_capacity_changes_nothing_for_a_model_that_reads_times():
    m = model(time_bias=True)
    torch.nn.init.normal_(m.encoder.enc_layers[0].mha.time_bias)

    assert_same_training(graphed, m)


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
            batch(3, 4, 5, 6, timed=True),
        ],
    )
    for b in (fitting, *others):
        step(b, SEED)
    assert len(worked_on[0].items) == SHAPE.capacity
    assert all(torch.equal(x.items, y.items) for x, y in zip(worked_on[1:], others, strict=True))


@pytest.mark.parametrize(("per", "rows"), [("sequence", 4), ("batch", 1)])
def test_steps_on_buffers_train_on_shared_negatives_as_on_the_batch(per, rows):
    batches = [
        number_rows(replace(b, negatives=b.negatives[:rows], negatives_per=per))
        for b in (batch(5, 1, 17, 9), batch(2, 0, 3, 1))
    ]
    shape = BatchShape.like(batches[0], 20)
    buffer = cuda_graph._Buffer(shape, 20, torch.device("cpu"))
    m = model().eval()

    for b in batches:
        assert shape.fits(b)
        buffer.fill(b, SEED)
        torch.testing.assert_close(m.training_loss(buffer.batch), m.training_loss(b))
        numbers = buffer.batch.numbers
        assert torch.equal(numbers.item_ids[numbers.negatives], b.negatives)
    assert not shape.fits(batch(5, 1, 17, 9))


def test_a_buffer_forgets_the_batch_before():
    buffer = cuda_graph._Buffer(SHAPE, 20, torch.device("cpu"))
    buffer.fill(batch(20, 20, 20, 4), torch.tensor([5]))
    small = batch(1, 0, 2, 1)
    buffer.fill(small, torch.tensor([6]))
    assert buffer.seed.item() == 6
    assert torch.equal(buffer.batch.cu_seqlens, small.cu_seqlens)
    for name in ("items", "positions", "positives", "negatives"):
        assert torch.equal(getattr(buffer.batch, name)[:4], getattr(small, name))
        assert (getattr(buffer.batch, name)[4:] == 0).all()


def test_on_a_cpu_a_step_is_eager():
    def make_step(m, o):
        return training_step(work_of(m, o), o, m.device, m.seq_max_len)

    assert_same_training(make_step, model(), assert_equal)


def test_the_step_names_nothing_that_makes_the_host_wait_for_the_device():
    waits = {"item", "tolist", "nonzero", "cpu", "masked_select", "unique", "numpy", "any", "all"}
    functions = [
        SSEPT.training_loss,
        SSEPT._encode_targets,
        ops.sampled_loss,
        SSEPT.encode,
        *(Scores.queries, Scores.vectors, Scores.forward),
        *(encoder.Encoder.forward, encoder.EncoderLayer.forward, layers.MultiHeadAttention.forward),
        *(encoder.PreNormLayer.forward, encoder.PreNormLayer.attend, encoder.PreNormLayer.add),
        *(encoder.GatedLayer.forward, layers.SwigluFeedForward.forward),
        layers.PointWiseFeedForward.forward,
        layers.LayerNormalization.forward,
        losses.softmax,
        *(losses._TiledSoftmax.forward, losses._TiledSoftmax.backward),
    ]
    for function in functions:
        source = inspect.cleandoc("\n" + inspect.getsource(function))
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & waits, function.__qualname__


@every_architecture
def test_compiling_the_model_for_changing_lengths_makes_at_most_two_graphs(architecture):
    m = model(architecture=architecture).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m.sampled_logits, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 3, 4), (4, 9, 2), (1, 12, 3), (7, 7, 20), (2, 15, 9)]:
        b = batch(*lengths)
        assert_close(compiled(b), m.sampled_logits(b))
    assert counter.frame_count <= 2


@pytest.mark.cuda
@every_architecture
def test_replayed_steps_train_as_eager_ones(architecture):
    assert_same_training(graphed, model(device="cuda", architecture=architecture))


@pytest.mark.cuda
def test_replayed_steps_train_two_tables_of_items_as_eager_ones():
    assert_same_training(graphed, model(device="cuda", tie_item_embeddings=False))


@pytest.mark.cuda
def test_a_step_on_a_gpu_never_waits_for_it():
    m = model(torch.float32, "cuda")
    step = graphed(m, adam(m))
    for lengths in BATCHES[:3] * 2:
        step(batch(*lengths), SEED)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lengths in BATCHES[:3]:
            step(batch(*lengths), SEED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
