"""The one policy of numerical agreement.

Errors are relative norms, |actual - exact| / |exact|, with the exact result computed in float64. float64 and float32
must be within a fixed factor of their rounding; half types may be at most twice as far off as plain PyTorch in the
same type, which rounds after every step.
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


def assert_close(actual, exact, plain=None):
    """`plain` is plain PyTorch's result in the half type; unused for wider types."""
    error = relative_error(actual, exact)
    limit = LIMITS.get(actual.dtype)
    if limit is None:
        assert plain is not None
        assert plain.dtype == actual.dtype
        limit = 2 * relative_error(plain, exact) + 1e-4
    assert error <= limit, f"relative error {error:.3g} of {actual.dtype} exceeds {limit:.3g}"
