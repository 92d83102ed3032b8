"""No kernel keeps what should be in registers in local memory, which lies in the GPU's main memory.

Read from nvcc's own report on each source, compiled as the extension is; kept in build/ until a source changes.
"""

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest
from cuda_emulation.build import CSRC, ROOT

# Without kernels of attention in double, which are exempt and take long to compile.
SOURCES = sorted(set(CSRC.glob("ops/*/*.cu")) - {CSRC / "ops/causal_attention/double.cu"})
# What may use local memory, and why.
EXEMPT = {
    r"<double\b": "float64 is for checking the other types: nobody waits for it",
    r"_kernel<.*\b256\b.*CausalAttention": "heads of more than 128 features: rare, and merely slower",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc"),
]


@dataclass(frozen=True)
class Kernel:
    name: str
    stack_bytes: int
    spilled_bytes: int


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


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_no_kernel_uses_local_memory(source, architecture):
    kernels = kernels_of(compile_report(source, architecture))
    judged = [k for k in kernels if not any(re.search(e, k.name) for e in EXEMPT)]
    assert judged or source.stem == "double", "the report has lost its kernels"
    assert [k for k in judged if k.stack_bytes or k.spilled_bytes] == []


def test_the_report_of_a_spill_is_understood():
    report = """
ptxas info    : Function properties for void a::kernel<float, 4>(float*)
    40 bytes stack frame, 36 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 448 bytes cmem[0]
"""
    assert kernels_of(report) == [Kernel("void a::kernel<float, 4>(float*)", 40, 48)]
