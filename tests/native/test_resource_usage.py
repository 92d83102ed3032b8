"""No kernel keeps what should be in registers in local memory, which lies in the GPU's main memory.

Read from the installed module, where it has kernels for a GPU; for other GPUs from nvcc's own report on each source,
compiled as the extension is; kept in build/ until a source changes.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache

import pytest
from cuda_emulation.build import CSRC, ROOT

from ssept_ext._extension import native

# Without kernels of attention that take long to compile: those of double are exempt, and those of float16 bfloat16's.
LEFT_OUT = {CSRC / "ops" / "causal_attention" / f"{name}.cu" for name in ("double", "half")}
SOURCES = sorted(set(CSRC.glob("ops/*/*.cu")) - LEFT_OUT)
# What may use local memory, and why.
EXEMPT = {
    r"<double\b": "float64 is for checking the other types: nobody waits for it",
    r"_kernel<.*\b256\b.*CausalAttention": "heads of more than 128 features: rare, and merely slower",
}

# Of a CUDA toolkit, or of the package nvidia-cuda-cuobjdump.
CUOBJDUMP = shutil.which(
    "cuobjdump",
    path=os.pathsep.join(
        [os.environ["PATH"], sysconfig.get_path("purelib") + "/nvidia/cu13/bin"],
    ),
)


@dataclass(frozen=True)
class Kernel:
    name: str
    stack_bytes: int
    """Where what is spilled lies, too."""
    spilled_bytes: int = 0


def name_of(source):
    return f"{source.parent.name}-{source.stem}"


def compile_report(source, architecture):
    """What `ptxas -v` says, with names of C++."""
    headers = sorted(h for pattern in ("*.h", "*.cuh") for h in CSRC.rglob(pattern))
    texts = [p.read_text() for p in (source, *headers)]
    command = ["nvcc", "-std=c++20", "-O3", "-cubin", f"-arch={architecture}", "-Xptxas=-v"]
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    inputs = "\0".join([*command, version.stdout, *texts])
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    name = f"{name_of(source)}-{architecture}-{digest}.txt"
    report = ROOT / "build" / "resource_usage" / name
    if not report.exists():
        report.parent.mkdir(parents=True, exist_ok=True)
        cubin = report.with_suffix(".cubin")
        done = subprocess.run(
            [*command, f"-I{CSRC}", str(source), "-o", str(cubin)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        cubin.unlink()
        names = subprocess.run(["c++filt"], input=done.stderr, capture_output=True, text=True)
        report.write_text(names.stdout)
    return report.read_text()


def kernels_of(report):
    pattern = (
        r"Function properties for (.*)\n"
        r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    return [
        Kernel(name, int(stack), int(stores) + int(loads))
        for name, stack, stores, loads in re.findall(pattern, report)
    ]


def kernels_of_module(usage):
    """Of each architecture, in what `cuobjdump -res-usage` says, with names of C++."""
    pattern = r"Function (.*):\n\s*REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    _, *parts = re.split(r"^arch = (\w+)\n", usage, flags=re.MULTILINE)
    kernels = {}
    for architecture, functions in zip(parts[::2], parts[1::2], strict=True):
        kernels.setdefault(architecture, []).extend(
            Kernel(name, int(stack) + int(local))
            for name, stack, local in re.findall(pattern, functions)
        )
    return kernels


@cache
def installed_kernels():
    """Of each architecture; none without a module for GPUs and cuobjdump."""
    if CUOBJDUMP is None or native is None:
        return {}
    command = [CUOBJDUMP, "-res-usage", native.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = subprocess.run(["c++filt"], input=done.stdout, capture_output=True, text=True)
    return kernels_of_module(names.stdout)


def judged(kernels):
    return [k for k in kernels if not any(re.search(e, k.name) for e in EXEMPT)]


def in_local_memory(kernels):
    return [k for k in judged(kernels) if k.stack_bytes or k.spilled_bytes]


@pytest.mark.skipif(not installed_kernels(), reason="needs a module with CUDA kernels, cuobjdump")
def test_no_kernel_of_the_installed_module_uses_local_memory():
    for kernels in installed_kernels().values():
        assert len(judged(kernels)) > 150, "the report has lost its kernels"
        assert in_local_memory(kernels) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_no_kernel_uses_local_memory(source, architecture):
    if architecture in installed_kernels():
        pytest.skip(f"the installed module has all kernels for {architecture}")
    kernels = kernels_of(compile_report(source, architecture))
    assert judged(kernels), "the report has lost its kernels"
    assert in_local_memory(kernels) == []


def test_the_report_of_a_spill_is_understood():
    report = """
ptxas info    : Function properties for void a::kernel<float, 4>(float*)
    40 bytes stack frame, 36 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 448 bytes cmem[0]
"""
    assert kernels_of(report) == [Kernel("void a::kernel<float, 4>(float*)", 40, 48)]


def test_the_usage_of_a_module_for_two_gpus_is_understood():
    usage = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function void a::kernel<float, 4>(float*):
  REG:255 STACK:80 SHARED:1024 LOCAL:4 CONSTANT[0]:696 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
 Function b::kernel(int):
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:624 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert kernels_of_module(usage) == {
        "sm_80": [Kernel("void a::kernel<float, 4>(float*)", 84)],
        "sm_90": [Kernel("b::kernel(int)", 0)],
    }
