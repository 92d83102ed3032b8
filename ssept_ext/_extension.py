"""Loads the compiled extension `_C`, chooses the backend of each op, and reports both."""

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
_BACKENDS = get_args(Backend)
OPS = (
    "user_item_embedding",
    "position_layer_norm",
    "causal_attention",
    "feed_forward",
    "gated_residual",
    "multi_head_attention",
    "sampled_logits",
    "sampled_loss",
    "shared_loss",
    "swiglu",
)
IN_PLACE_OPS = ("lazy_adam", "rowwise_adagrad")
"""Those that update rows of a table, and have no gradients."""
RANKING_OPS = ("top_k", "item_ranks")
"""Those that rank items, and have no gradients."""
ALL_OPS = OPS + IN_PLACE_OPS + RANKING_OPS


def _load() -> tuple[ModuleType | None, str]:
    """Return the module `_C` and "", or None and the reason why it did not load."""
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
    """Return the (op, device type) pairs that have a kernel, according to torch's dispatcher."""
    return frozenset(
        (op, device)
        for op in ALL_OPS
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
    """How the package was built, and which backend each op uses. See `build_info`."""

    version: str
    """Version of ssept_ext."""
    python: str
    """Version of Python."""
    torch_at_run_time: str
    """Version of torch that is imported."""
    torch_at_build_time: str
    """Version of torch that the extension was built with; empty if the extension did not load."""
    compiler: str
    """Compiler of the extension; empty if it did not load."""
    cuda: str
    """CUDA architectures that the extension was built for, or why there are none; empty if it did not load."""
    simd: str
    """Instructions that the ops use on the CPU: the widest of "baseline", "avx2", "avx512" and "avx512_bf16" that the
    CPU has and the environment variable SSEPT_SIMD allows; empty if the extension did not load."""
    backend: Backend
    """The backend that `set_backend` chose."""
    ops: dict[str, dict[str, str]]
    """For each op and each of "cpu" and "cuda": "native", or "reference: " and the reason."""


def build_info() -> BuildInfo:
    """Report versions, compiler, CUDA architectures, and the backend of every op on every device.

    Examples
    --------
    >>> sorted(build_info().ops["causal_attention"])
    ['cpu', 'cuda']
    """
    try:
        package_version = version("ssept_ext")
    except PackageNotFoundError:
        package_version = "unknown (imported from a source tree)"
    ops = {}
    for op in ALL_OPS:
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
    """Return why `op` has no native kernel for this type of device; empty if it has one."""
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
    """Check the name of a backend and, for "native", that the extension is loaded.

    Raises
    ------
    ValueError
        If the name is unknown.
    RuntimeError
        If it is "native" and the extension did not load; says why.
    """
    if backend not in _BACKENDS:
        raise ValueError(f'backend must be one of {_BACKENDS}, got "{backend}"')
    if backend == "native" and native is None:
        raise RuntimeError(
            f'backend "native" is not available: the extension did not load ({_reason_not_loaded})'
        )
    return cast("Backend", backend)


def set_backend(backend: Backend) -> None:
    """Choose the backend of all ops, for calls and models that do not choose their own.

    "auto", the default, uses the native kernel if there is one for the device, and else the reference; "reference"
    always uses plain PyTorch; "native" raises an error if an op has no kernel.

    Raises
    ------
    ValueError
        If the name is unknown.
    RuntimeError
        If it is "native" and the extension did not load; says why.

    Examples
    --------
    >>> set_backend("reference")  # plain PyTorch
    >>> set_backend("auto")
    """
    global _backend
    _backend = check_backend(backend)


def use_native(op: str, device: torch.device, backend: Backend | None) -> bool:
    """Whether this call uses the native kernel; a RuntimeError if the backend is "native" and there is none."""
    chosen = _backend if backend is None else check_backend(backend)
    if chosen == "auto":
        chosen = _backend
    if chosen == "reference":
        return False
    if (op, device.type) in _kernels:
        return True
    if chosen == "native":
        why = why_not_native(op, device.type)
        raise RuntimeError(f"{op} has no native kernel for {device.type}: {why}")
    return False
