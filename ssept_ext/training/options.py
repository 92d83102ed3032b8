"""Options of training. Each is declared once, here; see `ssept_ext.utils.options`."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass
from typing import Literal

from ssept_ext.network.losses import LogQCorrection, LossName
from ssept_ext.utils.options import (
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    PROPER_FRACTION,
    Range,
    check_options,
    option,
)

Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "tf32", "bf16"]
TableOptimizer = Literal["adam", "lazy_adam", "rowwise_adagrad"]
"""Updates of the item and user tables, see `ssept_ext.training.table_rows`."""
Validation = Literal["sampled", "full"]
"""What a validation ranks the held-out item among: negatives, as recommenders does, or all items."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """The arguments of recommenders' `train_model`, with its defaults.

    Raises
    ------
    ValueError
        If an option is out of range; names the option, its limit and the value.

    Examples
    --------
    >>> LoopOptions(num_epochs=3).batch_size
    128
    """

    num_epochs: int = option(10, "passes of (users / batch size) steps", Range(1), flag="epochs")
    batch_size: int = option(128, "sequences in a batch, over all processes", Range(1, 10_000_000))
    learning_rate: float = option(0.001, "step size of Adam", POSITIVE)
    val_epoch: int = option(0, "validate after every N epochs; 0 for never", NOT_NEGATIVE)
    eval_batch_size: int = option(256, "users per forward pass in validation", Range(1))

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """More keyword arguments of `train_model`, which recommenders does not have.

    Raises
    ------
    ValueError
        If an option is out of range; names the option, its limit and the value.

    Examples
    --------
    >>> TrainingOptions(schedule="cosine").learning_rate_factor(step=50, num_steps=100)
    0.5
    """

    loss: LossName = option("bce", "training loss, see ssept_ext.network.losses")
    gbce_t: float = option(0.75, 'degree of calibration of "gbce"', PROBABILITY)
    logq_correction: LogQCorrection = option(
        "all",
        'which logits log Q corrects in "sampled_softmax": "negatives" leaves out the positive, which is not drawn',
    )
    adam_betas: tuple[float, float] = option(
        (0.9, 0.999), "decay rates of Adam's moments", PROPER_FRACTION
    )
    table_optimizer: TableOptimizer = option(
        "adam",
        "what trains the item and user tables: Adam of all rows, or of the rows that a batch reads (lazy_adam, "
        "rowwise_adagrad), whose cost does not grow with the tables",
    )
    schedule: Schedule = option(
        "constant", 'schedule of the learning rate: "cosine" decays it to 0 over all epochs'
    )
    warmup_steps: int = option(
        0, "steps over which the learning rate first rises linearly", NOT_NEGATIVE
    )
    max_grad_norm: float | None = option(
        None, "scale the gradients of all parameters together down to this norm", POSITIVE
    )
    precision: Precision | None = option(
        None,
        'precision of matrix products and attention in training steps: "float32" (the default), "tf32" for the '
        'tensor cores of GPUs (float32 on CPUs), or "bf16", hidden states in bfloat16 by autocast',
    )
    bf16: InitVar[bool | None] = None
    """Older spelling of `precision`: True means "bf16"."""
    validation: Validation = option(
        "sampled",
        'what validations rank among: "sampled" negatives (the default of train_model) or the "full" catalogue (that '
        "of fit and ssept train)",
    )
    patience: int = option(
        0, "stop after this many validations without improvement; 0 for never", NOT_NEGATIVE
    )
    restore_best: bool = option(False, "keep the best model by validation, not the last")

    def __post_init__(self, bf16: bool | None) -> None:
        if self.precision is None:
            object.__setattr__(self, "precision", "bf16" if bf16 else "float32")
        elif bf16 is not None and bf16 != (self.precision == "bf16"):
            raise ValueError(
                f'bf16={bf16} contradicts precision="{self.precision}": leave bf16 out'
            )
        check_options(self)
        if self.loss == "softmax" and self.table_optimizer != "adam":
            raise ValueError(
                f'table_optimizer must be "adam" with loss="softmax", whose gradient has all items, '
                f'got "{self.table_optimizer}"'
            )

    def learning_rate_factor(self, step: int, num_steps: int) -> float:
        """Return the factor of the learning rate at step `step`, counted from 0, of `num_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))


def check_together(loop: LoopOptions, options: TrainingOptions) -> None:
    """Raise a ValueError if an option needs validations and there are none."""
    if (options.patience or options.restore_best) and not loop.val_epoch:
        raise ValueError("patience and restore_best need a val_epoch of at least 1, got 0")
