"""Where capturing a step in a CUDA graph fails: what is undone, and what the warning says."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from support.graphed_steps import SEED, adam, assert_same_training, batch, graphed, model

from ssept_ext.training import cuda_graph
from ssept_ext.training.step import eager_step


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


@pytest.mark.cuda
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
        values = [step(batch(5, 1, 17, 9), SEED).item() for _ in range(6)]
    assert all(v > 0 for v in values)


@pytest.mark.cuda
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
        step(batch(5, 1, 17, 9), SEED)
    with pytest.warns(UserWarning, match="failed") as warned:
        step(batch(5, 1, 17, 9), SEED)

    assert not any("cannot capture any more" in str(w.message) for w in warned)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    drawn = [torch.rand(8, device="cuda") for _ in range(2)]
    assert not torch.equal(*drawn)
    assert_same_training(graphed, model(device="cuda"))  # warnings are errors
