"""The ops that update some rows of a table in place: `lazy_adam` and `rowwise_adagrad`."""

from __future__ import annotations

import torch
from torch import Tensor

from ssept_ext._extension import Backend
from ssept_ext.ops._native import call_in_place, register_without_gradient


def lazy_adam(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ids: Tensor,
    grad: Tensor,
    learning_rate: Tensor | float,
    step: Tensor | float,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    backend: Backend | None = None,
) -> None:
    """Take a step of Adam on the rows `ids` of a table, and leave the others as they are.

    For each of these rows p, with its gradient and its moments m and v:

    `g = grad + weight_decay · p`, `m = β1 · m + (1 - β1) · g`, `v = β2 · v + (1 - β2) · g²`,
    `p -= learning_rate · m / (1 - β1^step) / (sqrt(v / (1 - β2^step)) + eps)`

    If all rows are updated in each step, this is `torch.optim.Adam` (Kingma and Ba 2015). The moments of other rows do
    not decay, as in `torch.optim.SparseAdam` and TensorFlow Addons' LazyAdam; like those, the op corrects the bias by
    the number of steps of the training, not of the row. It is no part of autograd: a table may require gradients.

    Parameters
    ----------
    table
        (R, W) float32 or float64, contiguous. Row 0 is padding, and is neither read nor changed.
    exp_avg, exp_avg_sq
        (R, W) moments, same dtype, contiguous.
    ids
        (M,) int64, contiguous: rows in ascending order, each at most once. Any of them may be 0, and is skipped with
        its gradient.
    grad
        (M, W) gradients of these rows, same dtype as the table, contiguous.
    learning_rate
        At least 0. As a float32 or float64 tensor without dimensions, on the device of the table, it may change between
        replays of a CUDA graph; a number may not.
    step
        The number of steps, with this one; given as `learning_rate` is.
    betas
        (β1, β2), both in [0, 1).
    eps, weight_decay
        At least 0.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype, layout, device or value, or if ids do not ascend; names it. Nothing has
        been changed then.
    IndexError
        If an id is outside the table; names it and the table's size. On CUDA a bad id, or one that is not above the id
        before it, is skipped, and the next `ssept_ext.ops.raise_pending_errors` raises the error.

    Examples
    --------
    >>> table, exp_avg, exp_avg_sq = torch.ones(4, 2), torch.zeros(4, 2), torch.zeros(4, 2)
    >>> ids, grad = torch.tensor([1, 3, 0]), torch.tensor([[5.0, 5.0], [-7.0, -7.0], [0.0, 0.0]])
    >>> lazy_adam(table, exp_avg, exp_avg_sq, ids, grad, 0.1, 1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    >>> table
    tensor([[1.0000, 1.0000],
            [0.9000, 0.9000],
            [1.0000, 1.0000],
            [1.1000, 1.1000]])
    """
    numbers = (_on_device_of(table, learning_rate), _on_device_of(table, step))
    changed = (table, exp_avg, exp_avg_sq)
    call_in_place("lazy_adam", backend, changed, ids, grad, *numbers, *betas, eps, weight_decay)


def rowwise_adagrad(
    table: Tensor,
    sum_of_squares: Tensor,
    ids: Tensor,
    grad: Tensor,
    learning_rate: Tensor | float,
    *,
    eps: float,
    weight_decay: float,
    backend: Backend | None = None,
) -> None:
    """Take a step of Adagrad with one number a row, on the rows `ids` of a table, and leave the others as they are.

    For each of these rows p, with its gradient and its sum s:

    `g = grad + weight_decay · p`, `s += mean(g²)`, `p -= learning_rate · g / (sqrt(s) + eps)`

    This is EXACT_ROWWISE_ADAGRAD of FBGEMM, on which TorchRec runs, with its L2 weight decay. It is no part of
    autograd: a table may require gradients.

    Parameters
    ----------
    table
        (R, W) float32 or float64, contiguous. Row 0 is padding, and is neither read nor changed.
    sum_of_squares
        (R,), same dtype, contiguous.
    ids
        (M,) int64, contiguous: rows in ascending order, each at most once. Any of them may be 0, and is skipped with
        its gradient.
    grad
        (M, W) gradients of these rows, same dtype as the table, contiguous.
    learning_rate
        At least 0. As a float32 or float64 tensor without dimensions, on the device of the table, it may change between
        replays of a CUDA graph; a number may not.
    eps, weight_decay
        At least 0.
    backend
        Overrides `ssept_ext.set_backend` for this call.

    Raises
    ------
    ValueError
        If an argument has a wrong shape, dtype, layout, device or value, or if ids do not ascend; names it. Nothing has
        been changed then.
    IndexError
        If an id is outside the table; names it and the table's size. On CUDA a bad id, or one that is not above the id
        before it, is skipped, and the next `ssept_ext.ops.raise_pending_errors` raises the error.

    Examples
    --------
    >>> table, sum_of_squares = torch.ones(3, 2), torch.zeros(3)
    >>> ids, grad = torch.tensor([2]), torch.tensor([[3.0, 3.0]])
    >>> rowwise_adagrad(table, sum_of_squares, ids, grad, 0.1, eps=1e-8, weight_decay=0.0)
    >>> table[2], sum_of_squares
    (tensor([0.9000, 0.9000]), tensor([0., 0., 9.]))
    """
    changed, rate = (table, sum_of_squares), _on_device_of(table, learning_rate)
    call_in_place("rowwise_adagrad", backend, changed, ids, grad, rate, eps, weight_decay)


def _on_device_of(table: Tensor, x: Tensor | float) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.full((), x, dtype=torch.float64, device=table.device)


def register(namespace: str) -> None:
    """Register the fake implementations of these ops in a library namespace."""
    for op in ("lazy_adam", "rowwise_adagrad"):
        register_without_gradient(namespace, op, lambda *_, **__: None)
