"""`bench/step_report.py`: a step launches no more kernels than it did, and each op as many as the report says."""

import ctypes
import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_emulation.build import build_ops
from support.factories import random_batch
from support.implementations import load_emulated_ops
from support.op_calls import arguments, call
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ssept_ext._extension import IN_PLACE_OPS
from ssept_ext.training.step import make_loss

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
step_report = importlib.import_module("step_report")
launches = importlib.import_module("launches")

MOST_KERNELS = {
    "sse-pt": 74,
    "sse-pt++": 74,
    "sasrec": 73,
    "sse-pt-sampled-softmax": 74,
    "sse-pt++-sampled-softmax": 74,
    "sasrec-sampled-softmax": 73,
    "recommenders": 75,
    "pre-ln": 95,
    "gated": 132,
    "time": 81,
    "cosine": 118,
}
"""Of a captured step. Lower a number when a change needs fewer; do not raise one."""
LENGTHS = (5, 0, 1, 6)


@pytest.mark.parametrize("name", step_report.SETTINGS)
def test_a_step_launches_no_more_kernels_than_before(name):
    assert step_report.report_of(name, quick=True).kernels <= MOST_KERNELS[name]


class EmulatedLaunches(TorchDispatchMode):
    """Counts for each op what the report says and what the emulation launches."""

    def __init__(self, library):
        super().__init__()
        self.said, self.launched = {}, {}
        self._library = library

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != "ssept_emulated":
            return func(*args, **kwargs)
        before = self._library.emulated_launches()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            out = func(*args, **kwargs)
        launched = self._library.emulated_launches() - before
        call = launches.call_of(func, args, kwargs, out, torch.tensor(LENGTHS))
        self.said[call.op] = call.kernels - call.helpers
        self.launched[call.op] = launched + kernels_of_torch(profiled.events())
        return out


def kernels_of_torch(events):
    """How many ops of torch ran that are a kernel on a GPU, each without those that it calls itself."""
    kernels = [event for event in events if is_kernel(event.name)]
    return sum(event.cpu_parent not in kernels for event in kernels)


def is_kernel(event):
    name = event.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name, None) if name != event else None
    overloads = [] if packet is None else [getattr(packet, x) for x in packet.overloads()]
    return name in launches.ATEN or any(torch.Tag.pointwise in op.tags for op in overloads)


@pytest.fixture
def emulated(monkeypatch):
    """Counts a step, in which the CUDA kernels run on the CPU."""
    load_emulated_ops()
    monkeypatch.setattr(torch.ops, "ssept_ext", torch.ops.ssept_emulated)
    library = build_ops(os.environ.get("SSEPT_EMULATION_MODE", "plain"))
    return EmulatedLaunches(ctypes.CDLL(str(library)))


def run_tiny_step(name, recorder):
    sizes = {"seq_max_len": 6, "embedding_dim": 8, "num_blocks": 1}
    sizes |= {} if name.startswith("sasrec") else {"user_embedding_dim": 4}
    recipe = step_report.recipe_of(name, **sizes)
    loss = make_loss(recipe.make_model(20, 5), None, recipe.training)
    batch = random_batch(*LENGTHS, num_negatives=recipe.sampler.num_negatives)
    times = torch.arange(len(batch.items))
    batch = replace(batch, times=times, target_times=times + 1)
    with recorder:
        loss(batch, torch.tensor([3])).backward()


@pytest.mark.parametrize("name", step_report.SETTINGS)
def test_the_emulation_launches_as_many_kernels_for_each_op(name, emulated):
    run_tiny_step(name, emulated)

    assert emulated.said
    assert emulated.said == emulated.launched


OF_TIME = ("time_bias", "query_times", "key_times")


@pytest.mark.parametrize("absent", [(), OF_TIME, ("position_bias",)], ids=["both", "p", "t"])
def test_biases_of_attention_are_three_kernels_more_in_the_backward(absent, emulated):
    given = arguments("multi_head_attention", dtype=torch.float32) | dict.fromkeys(absent)
    given["x_q"].requires_grad_()

    with emulated:
        out = call("multi_head_attention", given, "native")
        out.backward(torch.ones_like(out))

    assert emulated.said == emulated.launched
    assert emulated.said == {"multi_head_attention": 4, "multi_head_attention_backward": 8 + 3}


def test_the_settings_together_call_every_op_of_the_list_with_gradients(emulated):
    for name in step_report.SETTINGS:
        run_tiny_step(name, emulated)

    assert set(emulated.said) == set(launches.OURS) - set(IN_PLACE_OPS)


@pytest.mark.parametrize("op", IN_PLACE_OPS)
def test_an_update_of_rows_is_one_kernel(op, emulated):
    with emulated:
        call(op, arguments(op), "native")

    assert emulated.said == emulated.launched == {op: 1}


def test_an_update_of_rows_reads_and_writes_them_alone():
    given = arguments("rowwise_adagrad", num_items=3, item_width=7, dtype=torch.float32)

    (update,) = recorded(lambda: call("rowwise_adagrad", given, "native"))

    read_and_written = 2 * 3 * (7 + 1)
    assert update.num_bytes == 4 * (read_and_written + 3 * 7 + 1) + 8 * 3


def recorded(call):
    with launches.Recorder(torch.tensor([3])) as recorder:
        call()
    return recorder.calls


def test_a_product_reads_its_factors_and_writes_its_result():
    a, b = torch.ones(3, 4), torch.ones(4, 5)

    assert recorded(lambda: a @ b) == [
        launches.Call("mm", kernels=1, num_bytes=4 * (3 * 4 + 4 * 5 + 3 * 5), flops=2 * 3 * 4 * 5)
    ]


def test_the_gradient_of_a_weight_is_a_product_with_a_helper():
    grad, x = torch.ones(3, 4), torch.ones(3, 5)

    (call,) = recorded(lambda: grad.t() @ x)

    assert (call.kernels, call.helpers) == (2, 1)


def test_an_op_in_place_reads_and_writes_its_first_argument():
    a, b = torch.ones(6), torch.ones(1)

    (call,) = recorded(lambda: a.add_(b.expand(6)))

    assert call == launches.Call("add_", kernels=1, num_bytes=4 * (6 + 6 + 1), flops=0)


def test_views_are_no_kernels():
    a = torch.ones(3, 4)

    assert recorded(lambda: a.t()[1:].unsqueeze(0)) == []


def test_an_op_of_which_nothing_is_known_is_refused_by_name():
    a = torch.ones(3)

    with pytest.raises(LookupError, match=r"how many kernels aten\.sort\.default launches"):
        recorded(a.sort)


def test_a_call_takes_as_long_as_its_bytes_or_its_products_and_a_constant_for_each_kernel():
    machine = step_report.Machine(bandwidth=1000, rate=2, gap=3)

    assert machine.microseconds(launches.Call("", 2, num_bytes=10**6, flops=0)) == 1 + 2 * 3
    assert machine.microseconds(launches.Call("", 1, num_bytes=10**6, flops=10**8)) == 50 + 3


def test_json_has_every_op_under_a_model_of_the_machine(monkeypatch, capsys):
    calls = [launches.Call("mm", 2, 8, 6), launches.Call("mm", 1, 8, 6)]
    monkeypatch.setattr(step_report, "report_of", lambda *_: step_report.Report("", calls))

    step_report.main(["sasrec", "--gap", "7", "--json"])

    printed = json.loads(capsys.readouterr().out)
    assert printed["model, not measured"]["gap"] == 7
    (op,) = printed["steps"]["sasrec"]["ops"]
    assert (op["op"], op["calls"], op["kernels"], op["bytes"], op["flops"]) == ("mm", 2, 3, 16, 12)


def test_tables_say_that_they_are_of_a_model(monkeypatch, capsys):
    calls = [launches.Call("mm", 2, 8 * 10**6, 6 * 10**9, helpers=1)]
    monkeypatch.setattr(step_report, "report_of", lambda *_: step_report.Report("a batch", calls))

    step_report.main(["sasrec", "--gap", "5"])

    output = capsys.readouterr().out
    assert "MODEL and no measurement" in output
    assert "sasrec: 2 kernels, 1 of them helpers of products and sums\na batch" in output
    assert output.splitlines()[-1].split() == ["the", "step", "1", "2", "8.00", "6.00", "26.04"]


def test_unknown_settings_are_refused(capsys):
    with pytest.raises(SystemExit):
        step_report.main(["gru4rec"])

    assert "gru4rec is not one of sse-pt" in capsys.readouterr().err
