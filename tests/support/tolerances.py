"""The one policy of numerical agreement.

Errors are relative norms, |actual - exact| / |exact|, with the exact result computed in float64. float64 and float32
must be within a fixed factor of their rounding; half types may be at most twice as far off as plain PyTorch in the
same type, which rounds after every step. So may float32 where a caller allows TF32, plain PyTorch then being
`tf32_matmul`, which rounds both factors of every product to 10 bits, as torch's own matmul does on a GPU.
"""

import torch

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6}
HALF_TYPES = (torch.float16, torch.bfloat16)


def relative_error(actual, exact):
    """|actual - exact| / |exact|; where exact is all zeros, |actual|, as inputs are of order 1."""
    actual, exact = actual.detach().cpu().double(), exact.detach().cpu().double()
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    norm = exact.norm().item()
    difference = (actual - exact).norm().item()
    return difference / norm if norm > 0 else difference


class _Tf32Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return _rounded_to_tf32(x) @ _rounded_to_tf32(y)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return (
            _rounded_to_tf32(grad) @ _rounded_to_tf32(y).mT,
            _rounded_to_tf32(x).mT @ _rounded_to_tf32(grad),
        )


def _rounded_to_tf32(x):
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def tf32_matmul(x, y):
    """The product of float32 matrices, and its gradients, in the arithmetic of TF32 tensor cores."""
    return _Tf32Matmul.apply(x, y)


def assert_close(actual, exact, plain=None, tf32=False):
    """`plain` is plain PyTorch's result in the half type, or in TF32; unused for wider types."""
    error = relative_error(actual, exact)
    limit = None if tf32 else LIMITS.get(actual.dtype)
    if limit is None:
        assert plain is not None
        assert plain.dtype == actual.dtype
        limit = 2 * relative_error(plain, exact) + 1e-4
    assert error <= limit, f"relative error {error:.3g} of {actual.dtype} exceeds {limit:.3g}"
