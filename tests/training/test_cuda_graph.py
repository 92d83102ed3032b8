"""Training steps on buffers of fixed size, as a CUDA graph needs them, and by such a graph."""

import ast
import inspect

import pytest
import torch
from support.graphed_steps import (
    BATCHES,
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

from ssept_ext import SSEPT
from ssept_ext.network import layers, losses, recommender, sse
from ssept_ext.ops import _tables
from ssept_ext.training import cuda_graph
from ssept_ext.training.cuda_graph import (
    training_step,
)


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
    buffer = cuda_graph._Buffer(SHAPE, 20, torch.device("cpu"))
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


def test_a_shape_has_room_by_the_lengths_that_sequences_are_drawn_from():
    short, long = np.full(9, 2), np.array([2, 300])
    assert BatchShape.like(batch(2, 2, 2, 2), 20, short).capacity == 64
    assert BatchShape.like(batch(2, 2, 2, 2), 20, long).capacity == 128  # 4 of 20 at most
    assert BatchShape.like(batch(20, 20, 20, 20), 20, short).capacity == 128  # no batch is too long


def exceeded(lengths, batch_size, capacity, num_batches=100_000):
    """The share of batches of this size that have more tokens than `capacity`, and the mean of their tokens."""
    rng = np.random.default_rng(0)
    parts = (rng.choice(lengths, (num_batches // 10, batch_size)).sum(1) for _ in range(10))
    tokens = np.concatenate(list(parts))
    return (tokens > capacity).mean(), tokens.mean()


SKEWED = (np.random.default_rng(0).pareto(1.2, 5000) * 5 + 1).astype(int).clip(max=200)


@pytest.mark.parametrize("misfit_rate", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("batch_size", [1, 8, 128])
def test_skewed_lengths_exceed_a_capacity_as_rarely_as_asked_for_and_one_less_more_often(
    batch_size, misfit_rate
):
    capacity = tokens_for(SKEWED, batch_size, misfit_rate)

    rate, _ = exceeded(SKEWED, batch_size, capacity)
    spread = 4 * (misfit_rate / 100_000) ** 0.5
    assert rate <= misfit_rate + spread
    if capacity < 200 * batch_size:
        room_for_fewer, _ = exceeded(SKEWED, batch_size, capacity - max(1, capacity // 20))
        assert room_for_fewer > misfit_rate


def test_the_capacity_of_two_coins_is_exact():
    heads = np.array([0, 1])  # the sum of 10 exceeds 7 with 56 / 1024, 8 with 11 / 1024
    assert tokens_for(heads, 10, 56 / 1024) == 7
    assert tokens_for(heads, 10, 55 / 1024) == 8
    assert tokens_for(heads, 10, 1e-8) == 10
    assert tokens_for(np.array([7, 7]), 3, 1e-8) == 21


@pytest.mark.skipif(not ML_1M.is_file(), reason="needs the data")
def test_graphs_for_ml_1m_are_exceeded_in_one_step_of_ten_thousand_and_a_quarter_spare():
    users = np.loadtxt(ML_1M, np.int64, usecols=0)
    lengths = (np.bincount(users)[1:] - 3).clip(
        1, 200
    )  # two are held out, the last is a target only

    capacity = BatchShape.like(batch(*lengths[:128].tolist()), 200, lengths).capacity

    rate, mean = exceeded(lengths, 128, capacity)
    assert rate <= 3e-4  # of 100,000: 1e-4, and four deviations
    assert capacity < 1.25 * mean


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
            step(batch(*lengths))

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
    step(batch(5, 1, 17, 9))
    for other in (batch(20, 20, 20), batch(20, 20, 20, 20, num_negatives=3)):
        step(other)
        assert worked_on[-1].items.equal(other.items)

    assert gpu.done == ["prepared for 128", "eager"]


def test_a_step_that_could_not_be_captured_is_not_captured_for_more_tokens():
    gpu = FakeGpu(fails=True)
    m = model()
    step = growing(m, adam(m), gpu, lengths=np.array([1]))

    for _ in range(3):
        step(batch(1, 1, 1, 1))
    with pytest.warns(UserWarning, match="takes eager steps, because capturing failed: why"):
        step(batch(1, 1, 1, 1))
    step(batch(20, 20, 20, 20))

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
        step(batch(1, 1, 1, 1))
    assert gpu.replay() is not None

    step(batch(20, 20, 20, 20))

    assert left == [None] * len(left)


class Driver:
    """Stands for what torch does to a GPU; notes it, and fails where it is told to."""

    def __init__(self, monkeypatch, fails=()):
        self.done, self.fails = [], set(fails)
        self.current = "current"
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "Stream", lambda device: SimpleNamespace(device=device))
        monkeypatch.setattr(cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(cuda, "set_stream", self.set_stream)
        monkeypatch.setattr(cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(
            cuda, "CUDAGraph", lambda: SimpleNamespace(reset=lambda: self.do("reset"))
        )
        monkeypatch.setattr(cuda, "graph", self.graph)
        monkeypatch.setattr(torch, "zeros", lambda *_, device: self.do(f"zeros on {device}"))
        for name in ("endAllocateToPool", "releasePool"):
            monkeypatch.setattr(
                torch._C, f"_cuda_{name}", lambda *a, name=name: self.do(name, *a), raising=False
            )

    def do(self, what, *arguments):
        self.done.append((what, *arguments) if arguments else what)
        if what in self.fails:
            raise RuntimeError(f"{what} failed")

    def set_stream(self, stream):
        self.current = stream

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None):
        self.current = stream  # left behind where the end fails, as torch leaves it
        self.do("begin", pool)
        try:
            yield
        finally:
            self.do("end of capture" if pool else "end of trial")
        self.current = "current"


def capture(step):
    return cuda_graph._Gpu(torch.device("cuda", 1)).capture(step)


FAILED = [("begin", (0, 7)), "end of capture", ("endAllocateToPool", 1, (0, 7))]
RELEASED = [("releasePool", 1, (0, 7))]
TRIAL = ["reset", ("begin", None), "zeros on cuda:1", "end of trial"]


def waiting():
    raise RuntimeError("cannot wait in a capture")


def test_a_capture_that_failed_is_undone_in_order_and_says_what_failed_first(monkeypatch):
    driver = Driver(monkeypatch, fails=["end of capture"])

    with pytest.raises(cuda_graph.CaptureError, match="graph failed: cannot wait in a capture$"):
        capture(waiting)

    assert driver.done == [*FAILED, *RELEASED, *TRIAL]
    assert driver.current == "current"


def test_a_capture_that_torch_itself_ended_has_its_pool_released_by_the_graph_alone(monkeypatch):
    driver = Driver(monkeypatch, fails=["endAllocateToPool"])

    with pytest.raises(cuda_graph.CaptureError, match="graph failed: cannot wait in a capture$"):
        capture(waiting)

    assert driver.done == [*FAILED, *TRIAL]


def test_where_torch_cannot_capture_any_more_the_warning_says_so(monkeypatch):
    driver = Driver(monkeypatch, fails=["end of capture", "end of trial"])

    with pytest.raises(
        cuda_graph.CaptureError,
        match="graph failed: end of capture failed; this process cannot capture any more: end of trial",
    ):
        capture(lambda: torch.tensor(0.0))

    assert driver.current == "current"


def test_a_graph_whose_capture_failed_outlives_the_allocator_that_asks_it(monkeypatch):
    Driver(monkeypatch, fails=["end of capture"])
    monkeypatch.setattr(cuda_graph, "_failed_graphs", [])

    with pytest.raises(cuda_graph.CaptureError):
        capture(waiting)

    assert len(cuda_graph._failed_graphs) == 1


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
        SSEPT.encode,
        sse.replace_ids,
        sse._is_last,
        SSEPT._score,
        *(
            recommender.Encoder.forward,
            recommender.EncoderLayer.forward,
            layers.MultiHeadAttention.forward,
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


@pytest.mark.cuda
def test_replayed_steps_train_as_eager_ones():
    assert_same_training(graphed, model(device="cuda"))


@pytest.mark.cuda
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

    step = graphed(m, optimizer, eager_step(optimizer, waiting_loss))
    with pytest.warns(
        UserWarning, match="eager steps, because capturing one in a CUDA graph failed"
    ):
        values = [step(batch(5, 1, 17, 9)).item() for _ in range(6)]
    assert all(v > 0 for v in values)


@on_gpu
def test_after_a_capture_that_failed_torch_captures_and_draws_again():
    m = model(torch.float32, "cuda")
    optimizer = adam(m)

    def waiting_loss(batch, seed):
        value = m.training_loss(batch, seed=seed)
        value.item()
        return value

    step = graphed(m, optimizer, eager_step(optimizer, waiting_loss))
    stream = torch.cuda.current_stream()
    for _ in range(3):
        step(batch(5, 1, 17, 9))
    with pytest.warns(UserWarning, match="failed") as warned:
        step(batch(5, 1, 17, 9))

    assert not any("cannot capture any more" in str(w.message) for w in warned)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    drawn = [torch.rand(8, device="cuda") for _ in range(2)]
    assert not torch.equal(*drawn)
    assert_same_training(graphed, model(device="cuda"))  # warnings are errors


@on_gpu
def test_a_graph_grows_on_a_gpu():
    def make_step(m, o):
        return training_step(work_of(m, o), o, m.device, m.seq_max_len, lengths=np.array([1]))

    assert_same_training(make_step, model(device="cuda"))
