"""The ops that update rows of a table in plain PyTorch: the specification, as `reference` is of the other ops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssept_ext.ops.reference_checks import checked_ids


def lazy_adam(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ids: Tensor,
    grad: Tensor,
    learning_rate: Tensor,
    step: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Adam on some rows of a table: see `ssept_ext.ops`."""
    _check(table, ids, grad, learning_rate, eps, weight_decay)
    for name, x in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        _check_tensor(name, x, tuple(table.shape), table.dtype)
    _check_number_in("step", step)
    for beta in (beta1, beta2):
        if not 0 <= beta < 1:
            raise ValueError(f"betas must be in [0, 1), got {beta}")
    if grad.numel() == 0:
        return
    if _readable(step) and not step >= 1:
        raise ValueError(f"step must be at least 1, got {step.item()}")
    ids, size = _checked_values(table, ids, learning_rate)
    if len(table) == 0:  # and all ids are 0
        return
    old = table[ids]
    g = grad + weight_decay * old
    average = beta1 * exp_avg[ids] + (1 - beta1) * g
    average_sq = beta2 * exp_avg_sq[ids] + (1 - beta2) * g * g
    size = size / _correction(beta1, step)
    root = _correction(beta2, step).sqrt()
    new = old - size.to(table) * average / (average_sq.sqrt() / root.to(table) + eps)
    for changed, rows in ((table, new), (exp_avg, average), (exp_avg_sq, average_sq)):
        _write(changed, ids, rows)


def rowwise_adagrad(
    table: Tensor,
    sum_of_squares: Tensor,
    ids: Tensor,
    grad: Tensor,
    learning_rate: Tensor,
    eps: float,
    weight_decay: float,
) -> None:
    """Adagrad with one sum a row, on some rows of a table: see `ssept_ext.ops`."""
    _check(table, ids, grad, learning_rate, eps, weight_decay)
    _check_tensor("sum_of_squares", sum_of_squares, (table.shape[0],), table.dtype)
    if grad.numel() == 0:
        return
    ids, size = _checked_values(table, ids, learning_rate)
    if len(table) == 0:  # and all ids are 0
        return
    old = table[ids]
    g = grad + weight_decay * old
    total = sum_of_squares[ids] + (g * g).mean(1)
    new = old - (size.to(table) / (total.sqrt() + eps))[:, None] * g
    _write(table, ids, new)
    _write(sum_of_squares, ids, total)


def _correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step in float64, without cancellation."""
    log_beta = math.log(beta) if beta > 0 else -math.inf
    return -torch.expm1(step.double() * log_beta)


def _write(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Set the rows of a table but row 0, for which all zeros among the ids stand."""
    is_padding = (ids == 0).view(-1, *[1] * (rows.dim() - 1))
    table.index_copy_(0, ids, torch.where(is_padding, table[ids], rows))


def _readable(x: Tensor) -> bool:
    """Whether looking at a value costs no waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _checked_values(table: Tensor, ids: Tensor, learning_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Check ids and learning rate; returns ids that are all in the table, and the learning rate in float64."""
    if _readable(learning_rate):
        _check_finite("learning_rate", learning_rate.item())
    ids = checked_ids("ids", ids, table.shape[0], padding=True)
    if _readable(ids):
        rows = ids[ids > 0]
        falls = rows[1:] <= rows[:-1]
        if falls.any():
            before, after = (x[falls][0].item() for x in (rows[:-1], rows[1:]))
            raise ValueError(f"ids must ascend, got {after} after {before}")
    return ids, learning_rate.double()


def _check(
    table: Tensor,
    ids: Tensor,
    grad: Tensor,
    learning_rate: Tensor,
    eps: float,
    weight_decay: float,
) -> None:
    if table.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"table must be float32 or float64, got {table.dtype}")
    for name, x, dims in (("table", table, 2), ("ids", ids, 1)):
        if x.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, got shape {tuple(x.shape)}")
    _check_tensor("table", table, tuple(table.shape), table.dtype)
    _check_tensor("ids", ids, tuple(ids.shape), torch.int64)
    _check_tensor("grad", grad, (ids.shape[0], table.shape[1]), table.dtype)
    _check_number_in("learning_rate", learning_rate)
    _check_finite("eps", eps)
    _check_finite("weight_decay", weight_decay)


def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    if x.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {x.dtype}")
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def _check_number_in(name: str, x: Tensor) -> None:
    if x.dim() != 0 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be a float32 or float64 tensor without dimensions, got {x.dtype} of shape {tuple(x.shape)}"
        )


def _check_finite(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
