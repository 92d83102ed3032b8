"""Features of items, and the part of their vectors that is learned from them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssept_ext.utils.checks import shown
from ssept_ext.utils.files import DIGEST_LENGTH


class ItemContent(nn.Module):
    """A learned projection of each item's features, which is added to the item's row of the table.

    Features are not trained. The projection starts at zero, so that a model starts as one without features.

    Attributes
    ----------
    features
        (I + 1, F) float32, in the state dict; row 0, the padding, is zero.
    projection
        (Di, F), without a bias, which the rows of the table would make superfluous.

    Examples
    --------
    >>> content = ItemContent(num_items=2, feature_dim=3, item_dim=4)
    >>> content.set_features([[0, 0, 0], [1, 0, 0], [0, 1, 1]])
    >>> content(torch.ones(3, 4)).shape
    torch.Size([3, 4])
    """

    features: Tensor

    def __init__(self, num_items: int, feature_dim: int, item_dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_items + 1, feature_dim))
        self.projection = nn.Parameter(torch.zeros(item_dim, feature_dim))

    def reset_parameters(self) -> None:
        """Set the projection to zero."""
        nn.init.zeros_(self.projection)

    def set_features(self, features: Any) -> None:
        """Take the features of all items, in the order of their numbers.

        Parameters
        ----------
        features
            (I + 1, F) numbers, row 0 of zeros.

        Raises
        ------
        ValueError
            If they have another shape, are not finite, or row 0 is not zero.
        """
        given = checked_features(features, self.features.shape[1])
        if given.shape != self.features.shape:
            raise ValueError(
                f"item_features must have {len(self.features)} rows, of the padding and of items 1 to "
                f"{len(self.features) - 1}, got {len(given)}"
            )
        if given[0].any():
            raise ValueError("row 0 of item_features, the padding's, must be zero")
        self.features.copy_(given)

    def digest(self) -> str:
        """The first 64 bits of a SHA-256 of the features, in hexadecimal."""
        sha = hashlib.sha256(str(tuple(self.features.shape)).encode())
        sha.update(self.features.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()[:DIGEST_LENGTH]

    def forward(self, rows: Tensor, items: Tensor | None = None) -> Tensor:
        """Add the projected features of items (M,), or of all, to their rows (M, Di)."""
        features = self.features if items is None else self.features[items]
        return rows + F.linear(features, self.projection)


def checked_features(features: Any, width: int | None = None) -> Tensor:
    """Return a matrix as float32 on the CPU; a ValueError says what is wrong with it.

    Parameters
    ----------
    features
        (n, F) numbers.
    width
        F; None for any from 1.
    """
    try:
        array = features if isinstance(features, Tensor) else np.asarray(features)
        matrix = torch.as_tensor(array, device="cpu").to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"item_features must be a matrix of numbers: {error}") from None
    if matrix.dim() != 2 or matrix.shape[1] < 1:
        raise ValueError(f"item_features must be a matrix, got shape {tuple(matrix.shape)}")
    if width is not None and matrix.shape[1] != width:
        raise ValueError(
            f"item_features must have {width} columns, as the model has, got {matrix.shape[1]}"
        )
    finite = matrix.isfinite().all(1)
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        value = matrix[row][matrix[row].isfinite().logical_not()][0].item()
        raise ValueError(f"item_features must be finite, got {shown(value)} in row {row}")
    return matrix
