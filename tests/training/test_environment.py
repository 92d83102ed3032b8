"""What training changes in torch and in the allocator, and puts back."""

import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support.processes import program
from support.ring import Stub, train

from ssept_ext.ops._native import matmul_takes_tf32
from ssept_ext.training.environment import kept_memory, matmul_precision

pytestmark = pytest.mark.usefixtures("_one_thread")


class Told(Stub):
    """Notes what torch says of the precision of products, in training and in validation."""

    def __init__(self, fails=False):
        super().__init__()
        self.trained, self.validated, self.fails = set(), set(), fails

    def training_loss(self, batch, **options):
        self.trained.add(what_torch_says())
        if self.fails:
            raise RuntimeError("out of memory")
        return super().training_loss(batch, **options)

    def score(self, *arguments, **options):
        self.validated.add(what_torch_says())
        return super().score(*arguments, **options)


def what_torch_says():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
    )


@pytest.fixture(params=["none", "ieee", "tf32"])
def before(request):
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield what_torch_says()
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_torch_computes_in_tf32_in_training_steps_alone_and_on_gpus_alone(
    dataset, before, precision
):
    model = Told()

    train(model, dataset, val_epoch=1, precision=precision)

    on_cpus = before[2]
    expected = ("high", "tf32", on_cpus) if precision == "tf32" else before
    assert model.trained == {expected}
    assert model.validated == {before}
    assert what_torch_says() == before


def test_torch_is_left_as_it_was_where_a_step_in_tf32_raises(dataset, before):
    with pytest.raises(RuntimeError, match="out of memory"):
        train(Told(fails=True), dataset, precision="tf32")

    assert what_torch_says() == before


def test_attention_takes_tf32_where_training_lets_torch_take_it():
    with matmul_precision("tf32"):
        assert matmul_takes_tf32()
    assert not matmul_takes_tf32()


def test_memory_is_kept_over_all_epochs_and_given_back_where_one_fails(dataset, monkeypatch):
    told = []
    native = SimpleNamespace(keep_freed_memory=told.append)
    monkeypatch.setattr("ssept_ext.training.environment._extension", SimpleNamespace(native=native))

    train(Stub(), dataset, num_epochs=3, val_epoch=1)
    assert told == [True, False]

    with pytest.raises(RuntimeError, match="out of memory"):
        train(Told(fails=True), dataset)
    assert told == [True, False] * 2

    with kept_memory(torch.device("cuda")):
        pass
    assert len(told) == 4


def count_page_faults():
    def faults_of_a_step():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = 2**26 // resource.getpagesize()
    faults_of_a_step()
    assert faults_of_a_step() > pages // 2  # what there is to gain
    with kept_memory(torch.device("cpu")):
        # By where the heap lies, it grows more than once.
        assert min(faults_of_a_step() for _ in range(8)) < pages // 10
    assert faults_of_a_step() > pages // 2


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults, and needs glibc")
def test_memory_that_a_step_frees_is_kept_for_the_next_one(tmp_path):
    # In a process of its own, whose heap no other test has been at.
    command = program("import test_environment as t; t.count_page_faults()")
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
