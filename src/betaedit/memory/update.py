"""A change of one matrix, kept as two thin factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """``Delta = left right^T``, only built by ``dense``.

    Args:
        left: (d_out, b) residuals.
        right: (d_in, b) the directions they are written along.
    """

    left: Float[Tensor, "d_out b"]
    right: Float[Tensor, "d_in b"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The full matrix; for tests and post-processors."""
        return self.left @ self.right.T

    def norm(self) -> float:
        """The Frobenius norm, from the factors alone."""
        gram = (self.left.T @ self.left) * (self.right.T @ self.right)
        return float(gram.sum().clamp(min=0).sqrt())

    def is_finite(self) -> bool:
        """Whether both factors hold only finite values."""
        return bool(torch.isfinite(self.left).all() and torch.isfinite(self.right).all())
