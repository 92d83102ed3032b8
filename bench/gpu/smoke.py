"""Checks versions, correctness of gradients, and the ceilings of the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict

import torch
from measure import allow_tf32, seconds_by_graph
from workload import ROOT, load

import ssept_ext
from gpu.parts import Run, main

LIMITS = {"float32": 1e-4, "TF32": 2e-2}
"""Of the difference of gradients between kernels and reference, relative."""


def versions(run: Run) -> None:
    prepared = ROOT / "prepared.json"
    source = json.loads(prepared.read_text()) if prepared.exists() else {}
    run.record(
        "versions",
        device=run.options.device.type,
        gpu=torch.cuda.get_device_name() if run.on_gpu else None,
        driver=_first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        nvcc=_first_line("nvcc", "--version", line=-1),
        torch_cuda=torch.version.cuda,
        source=source,
        data=load("ML-1M", run.options.quick).source,
        build=asdict(ssept_ext.build_info()),
    )


def _first_line(*command: str, line: int = 0) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[line]


def smoke(run: Run) -> None:
    """Loss and gradients of the model on our kernels, against those on plain PyTorch."""
    for precision in LIMITS:
        if precision == "TF32":
            allow_tf32()
        (loss, gradient), (expected_loss, expected) = (
            _loss_and_gradient(run, backend) for backend in ("native", "reference")
        )
        error = ((gradient - expected).norm() / expected.norm()).item()
        run.record(
            f"smoke {precision}", loss=loss, reference_loss=expected_loss, gradient_error=error
        )
        if not error <= LIMITS[precision]:  # NaN fails, too
            raise AssertionError(
                f"gradients in {precision} differ by {error:g} from the reference's, relative; "
                f"allowed is {LIMITS[precision]:g}"
            )


def _loss_and_gradient(run: Run, backend: str) -> tuple[float, torch.Tensor]:
    device = run.options.device
    workload = load("ML-1M", run.options.quick)
    torch.manual_seed(0)
    model = workload.model(backend=backend).to(device)
    loss = model.training_loss(workload.batch(device).packed, seed=torch.tensor([7], device=device))
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients).double()


def ceilings(run: Run) -> None:
    """What a copy and a product of large matrices reach, in GB/s and TFLOP/s."""
    options = run.options
    small = options.quick or not run.on_gpu
    source = torch.ones(2 ** (16 if small else 28), device=options.device)
    target = torch.empty_like(source)
    seconds = seconds_by_graph(lambda: target.copy_(source), options, calls=5)
    run.record("copy", GBps=2 * source.nbytes / seconds / 1e9)
    allow_tf32()
    size = 128 if small else 8192
    for name, dtype in (("TF32", torch.float32), ("bfloat16", torch.bfloat16)):
        # Of random numbers: zeros draw less power, and so run faster.
        a, b = (torch.randn(size, size, device=options.device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        seconds = seconds_by_graph(lambda: torch.mm(a, b, out=product), options, calls=5)  # noqa: B023
        run.record(f"product {name}", TFLOPs=2 * size**3 / seconds / 1e12)


if __name__ == "__main__":
    main({"versions": versions, "smoke": smoke, "ceilings": ceilings})
