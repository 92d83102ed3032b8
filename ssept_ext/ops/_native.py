"""What the ops share: casts, the choice between kernel and reference, and what torch is told of the C++ ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssept_ext._extension import Backend, use_native
from ssept_ext.ops import reference, row_update_reference

# Asked once: torch 2.11 cannot compile the question.
_WITH_AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))
"""Types of devices."""


def call(op: str, device: torch.device, backend: Backend | None, *args: Any) -> Any:
    """Call the kernel of `op` for this device or, without autocast, which would round its products, its reference."""
    if use_native(op, device, backend):
        # The level first: it is -1 outside of forward-mode derivatives, and looking at each argument takes longer.
        in_forward_mode = forward_ad._current_level >= 0 and not torch.compiler.is_compiling()
        if in_forward_mode and any(map(_has_tangent, args)):
            raise NotImplementedError(
                f'{op} has no forward-mode derivative: use backend="reference"'
            )
        return getattr(torch.ops.ssept_ext, op)(*args)
    if device.type not in _WITH_AUTOCAST:
        return getattr(reference, op)(*args)
    with torch.autocast(device.type, enabled=False):
        return getattr(reference, op)(*args)


def call_in_place(op: str, backend: Backend | None, changed: Sequence[Tensor], *args: Any) -> None:
    """Call the kernel of an op that changes its first arguments, or its reference, outside of autograd."""
    with torch.no_grad():
        if not use_native(op, changed[0].device, backend):
            getattr(row_update_reference, op)(*changed, *args)
            return
        getattr(torch.ops.ssept_ext, op)(*changed, *args)
    if not torch.compiler.is_compiling():  # which does this itself
        torch.autograd.graph.increment_version(changed)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the dtype of `torch.autocast` on this device, or None if it is off."""
    if device.type in _WITH_AUTOCAST and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast to `dtype`, unless it is None or x is float64, which torch's autocast never casts either."""
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


def matmul_takes_tf32() -> bool:
    """Whether matmul may use TF32. torch.compile recompiles when this changes, as it guards this global state."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


# torch.compiler.assume_constant_result sets this too, but imports torch._dynamo: half the time of `import ssept_ext`.
matmul_takes_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def register_op(
    namespace: str,
    op: str,
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any] | None,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> None:
    """Register the fake implementations of an op and of its backward (for torch.compile), and its gradient.

    An op that has all for its gradient among its outputs needs no other op for the backward, and no `fake_backward`.
    """
    forward_op, backward_op = f"{namespace}::{op}", f"{namespace}::{op}_backward"

    def second_backward(ctx: Any, *grads: Tensor) -> None:
        raise _no_second_derivatives(op)

    def only_backward(ctx: Any, *grads: Tensor) -> Any:
        gradients = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # as it is by create_graph
            return gradients
        return tuple(None if x is None else _Underivable.apply(x, op) for x in gradients)  # type: ignore[no-untyped-call]

    torch.library.register_fake(forward_op, _on_one_device(forward_op, fake))
    if fake_backward is None:
        _register_autograd(namespace, op, only_backward, setup_context)
        return
    torch.library.register_fake(backward_op, _on_one_device(backward_op, fake_backward))
    _register_autograd(namespace, op, backward, setup_context)
    torch.library.register_autograd(backward_op, second_backward)


def _register_autograd(
    namespace: str,
    op: str,
    backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
) -> None:
    """Do what `torch.library.register_autograd` does, but look up the defaults of arguments once.

    torch does in each call, which takes longer (70 us) than all else that it does.
    """
    overload = getattr(getattr(torch.ops, namespace), op).default
    defaults = tuple(argument.default_value for argument in overload._schema.arguments)

    def below_autograd(keys: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args)

    def forward(ctx: Any, *args: Any) -> Any:
        inputs, keys = args[:-1], args[-1]
        output = below_autograd(keys, inputs)
        setup_context(ctx, inputs + defaults[len(inputs) :], output)  # defaults do not arrive
        return output

    def with_keys(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return (*backward(ctx, *grads), None)

    functions = {"forward": staticmethod(forward), "backward": staticmethod(with_keys)}
    gradient: Any = type(f"{op}_with_gradient", (torch.autograd.Function,), functions)

    def autograd(keys: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return gradient.apply(*args, keys)
        return below_autograd(keys, args)

    library = torch.library.Library(namespace, "IMPL")  # type: ignore[no-untyped-call]
    library.impl(op, autograd, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)


_LIBRARIES: list[torch.library.Library] = []
"""Alive as long as the process: what they register ends with them."""


class _Underivable(torch.autograd.Function):
    """The identity, whose derivative is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: str) -> Tensor:
        ctx.op = op
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise _no_second_derivatives(ctx.op)


def _no_second_derivatives(op: str) -> NotImplementedError:
    return NotImplementedError(f'{op} has no second derivatives: use backend="reference"')


def register_without_gradient(namespace: str, op: str, fake: Callable[..., Any]) -> None:
    """Register the fake implementation, for torch.compile, of an op without a gradient."""
    name = f"{namespace}::{op}"
    torch.library.register_fake(name, _on_one_device(name, fake))


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _on_one_device(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Check the devices before `fake`, which torch also calls for real tensors of which one is on the meta device."""
    namespace, name = op.split("::")
    schema = getattr(getattr(torch.ops, namespace), name).default._schema

    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip((x.name for x in schema.arguments), args, strict=False)) | kwargs
        if not arguments.get("dropout_p"):
            arguments.pop("seed", None)  # which nobody reads
        (first, x), *others = ((k, v) for k, v in arguments.items() if isinstance(v, Tensor))
        for other, y in others:
            if y.device != x.device:
                raise ValueError(f"{other} must be on the device of {first}")
        return fake(*args, **kwargs)

    return checked
