"""Loading of the compiled extension `_C`, the choice of backend, and the report of both."""

from __future__ import annotations

import importlib
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Literal, cast, get_args

import torch

Backend = Literal["auto", "native", "reference"]
OPS = (
    "user_item_embedding",
    "position_layer_norm",
    "causal_attention",
    "bias_dropout",
    "sampled_logits",
)


def _load() -> tuple[ModuleType | None, str]:
    """The module `_C` and "", or None and why it is missing."""
    try:
        return importlib.import_module("ssept_ext._C"), ""
    except ImportError as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"ssept_ext runs on its slow reference backend, because its compiled extension did not load "
        f"({reason}). Build it for this Python and torch {torch.__version__} with "
        f"`pip install --force-reinstall --no-deps .` in a checkout of ssept_ext.",
        stacklevel=2,
    )
    return None, reason


def _find_kernels() -> frozenset[tuple[str, str]]:
    """Pairs of op and device type, from torch's dispatcher, so that no list of ours can be wrong."""
    return frozenset(
        (op, device)
        for op in OPS
        for device in ("cpu", "cuda")
        if hasattr(torch.ops.ssept_ext, op)
        and torch._C._dispatch_has_kernel_for_dispatch_key(f"ssept_ext::{op}", device.upper())
    )


native, _reason_not_loaded = _load()
_built: dict[str, str] = native.build_info() if native is not None else {}
_kernels = _find_kernels()
_backend: Backend = "auto"


@dataclass(frozen=True)
class BuildInfo:
    """What was built and what will run."""

    version: str
    python: str
    torch_at_run_time: str
    torch_at_build_time: str
    """Empty where the extension did not load, as are the three below."""
    compiler: str
    cuda: str
    """The CUDA architectures compiled for, or why there are none."""
    simd: str
    """What attention and dropout compute with on the CPU: the widest of "baseline", "avx2" and "avx512" that the
    machine has, and at most what the environment variable SSEPT_SIMD says."""
    backend: Backend
    """What `set_backend` chose."""
    ops: dict[str, dict[str, str]]
    """For each op and each of "cpu" and "cuda": "native", or "reference: " and the reason."""


def build_info() -> BuildInfo:
    """Report versions, compiler, CUDA architectures, and the backend of every op on every device."""
    try:
        package_version = version("ssept_ext")
    except PackageNotFoundError:
        package_version = "unknown (imported from a source tree)"
    ops = {}
    for op in OPS:
        missing = {device: why_not_native(op, device) for device in ("cpu", "cuda")}
        if _backend == "reference":
            missing = dict.fromkeys(missing, 'set_backend("reference") was called')
        ops[op] = {d: f"reference: {why}" if why else "native" for d, why in missing.items()}
    return BuildInfo(
        version=package_version,
        python=platform.python_version(),
        torch_at_run_time=torch.__version__,
        torch_at_build_time=_built.get("torch", ""),
        compiler=_built.get("compiler", ""),
        cuda=_built.get("cuda", ""),
        simd=_built.get("simd", ""),
        backend=_backend,
        ops=ops,
    )


def why_not_native(op: str, device_type: str) -> str:
    """Why `op` has no native kernel on this kind of device; empty where it has one."""
    if native is None:
        return f"the extension did not load ({_reason_not_loaded})"
    if device_type not in ("cpu", "cuda"):
        return f"there are no kernels for {device_type}"
    if (op, device_type) in _kernels:
        return ""
    if device_type == "cuda" and not built_with_cuda():
        return f"the extension was built without CUDA ({_built['cuda']})"
    return "it has no native kernel yet"


def native_available() -> bool:
    """Whether the extension loaded."""
    return native is not None


def built_with_cuda() -> bool:
    """Whether the extension holds CUDA kernels."""
    return ("sampled_logits", "cuda") in _kernels


def check_backend(backend: str) -> Backend:
    """Check the name, and for "native" that the extension is there.

    Raises
    ------
    ValueError
        If the name is unknown.
    RuntimeError
        If "native" is asked for and the extension did not load; says why.
    """
    if backend not in get_args(Backend):
        raise ValueError(f'backend must be one of {get_args(Backend)}, got "{backend}"')
    if backend == "native" and native is None:
        raise RuntimeError(
            f'backend "native" is not available: the extension did not load ({_reason_not_loaded})'
        )
    return cast("Backend", backend)


def set_backend(backend: Backend) -> None:
    """Choose how ops run where a call or a model does not choose for itself.

    "auto", the default, takes the native kernel where there is one for the device, else the reference;
    "reference" always takes plain PyTorch; "native" refuses to run an op that has no kernel.

    Raises
    ------
    ValueError, RuntimeError
        As `check_backend`.
    """
    global _backend
    _backend = check_backend(backend)


def use_native(op: str, device: torch.device, backend: Backend | None) -> bool:
    """Whether this call goes to the native kernel; an error where "native" is asked for and missing."""
    chosen = _backend if backend is None or backend == "auto" else backend
    if chosen == "reference":
        return False
    if (op, device.type) in _kernels:
        return True
    if chosen == "native":
        why = why_not_native(op, device.type)
        raise RuntimeError(f"{op} has no native kernel for {device.type}: {why}")
    return False
