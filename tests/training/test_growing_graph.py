"""When steps are captured, and when they are captured anew for batches with more tokens."""

import weakref

import numpy as np
import pytest
import torch
from support.graphed_steps import SEED, adam, assert_same_training, batch, model, work_of

from ssept_ext.training import cuda_graph
from ssept_ext.training.cuda_graph import (
    growing_step,
    training_step,
)


class FakeGpu:
    """Takes eager steps on the CPU, and "captures" by keeping the step, unless it is told to fail."""

    def __init__(self, fails=False):
        self.done, self.fails = [], fails

    def prepare(self, target, shape):
        self.target = target
        self.done.append(f"prepared for {shape.capacity}")

    def send(self, batch, seed):
        self.target.fill(batch, seed)

    def run(self, step):
        self.done.append("eager")
        return step()

    def capture(self, step):
        self.done.append("captured")
        if self.fails:
            raise cuda_graph.CaptureError("capturing failed: why")

        def replay():
            self.done.append("replayed")
            return step()

        self.replay = weakref.ref(replay)
        return replay


def growing(m, optimizer, gpu, work=None, lengths=None):
    work = work or work_of(m, optimizer)
    return growing_step(work, optimizer, m.device, m.seq_max_len, lengths, gpu)


def test_steps_are_captured_after_three_eager_ones_and_train_the_same():
    gpu = FakeGpu()

    assert_same_training(lambda m, o: growing(m, o, gpu, lengths=np.array([20])), model())

    assert gpu.done == ["prepared for 128", *["eager"] * 3, "captured", *["replayed"] * 7]


def test_a_batch_with_too_many_tokens_has_steps_captured_anew_twice_at_most():
    gpu = FakeGpu()
    m = model()
    step = growing_step(lambda *_: torch.tensor(0.0), adam(m), m.device, 100, np.array([1]), gpu)

    for lengths in (1, 1, 1, 1), (70, 70, 1, 1), (100, 100, 1, 1), (100, 100, 100, 1):
        for _ in range(5):
            step(batch(*lengths), SEED)

    captured = [*["eager"] * 3, "captured", "replayed", "replayed"]
    assert gpu.done == [
        *("prepared for 64", *captured),
        *("prepared for 192", *captured),
        *("prepared for 448", *captured, *["replayed"] * 5),
    ]


def test_where_a_graph_grew_training_is_the_same():
    gpu = FakeGpu()

    assert_same_training(lambda m, o: growing(m, o, gpu, lengths=np.array([1])), model())

    assert [done for done in gpu.done if "prepared" in done] == [
        "prepared for 64",
        "prepared for 128",
    ]


def test_a_smaller_batch_takes_an_eager_step_and_captures_nothing_anew():
    gpu = FakeGpu()
    worked_on = []
    m = model()
    step = growing(m, adam(m), gpu, lambda b, _: worked_on.append(b) or torch.tensor(0.0))
    step(batch(5, 1, 17, 9), SEED)
    for other in (batch(20, 20, 20), batch(20, 20, 20, 20, num_negatives=3)):
        step(other, SEED)
        assert worked_on[-1].items.equal(other.items)

    assert gpu.done == ["prepared for 128", "eager"]


def test_a_step_that_could_not_be_captured_is_not_captured_for_more_tokens():
    gpu = FakeGpu(fails=True)
    m = model()
    step = growing(m, adam(m), gpu, lengths=np.array([1]))

    for _ in range(3):
        step(batch(1, 1, 1, 1), SEED)
    with pytest.warns(UserWarning, match="takes eager steps, because capturing failed: why"):
        step(batch(1, 1, 1, 1), SEED)
    step(batch(20, 20, 20, 20), SEED)

    assert gpu.done == ["prepared for 64", *["eager"] * 3, "captured", "eager"]


def test_a_graph_is_gone_with_the_gradients_in_its_memory_before_the_next_is_prepared():
    gpu = FakeGpu()
    m = model()
    step = growing(m, adam(m), gpu, lengths=np.array([1]))
    left = []
    gpu.prepare = lambda target, shape: left.extend(
        [gpu.replay(), *(p.grad for p in m.parameters())]
    ) or setattr(gpu, "target", target)
    gpu.replay = lambda: None
    for _ in range(4):
        step(batch(1, 1, 1, 1), SEED)
    assert gpu.replay() is not None

    step(batch(20, 20, 20, 20), SEED)

    assert left == [None] * len(left)


@pytest.mark.cuda
def test_a_graph_grows_on_a_gpu():
    def make_step(m, o):
        return training_step(work_of(m, o), o, m.device, m.seq_max_len, lengths=np.array([1]))

    assert_same_training(make_step, model(device="cuda"))
