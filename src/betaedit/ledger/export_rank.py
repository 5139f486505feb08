"""The low-rank truncation of a weight change, and the rank that suffices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from betaedit.memory.update import Update

_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Decomposition:
    """A change of one matrix along its principal directions.

    Args:
        change: ``D`` (d_out, d_in), as given.
        directions: (d_out, d_out) orthonormal columns, float64: the left singular vectors, largest value first.
        tails: (d_out + 1) norm of ``D`` without its first ``r`` directions, for every ``r``.
    """

    change: Tensor
    directions: Tensor
    tails: Tensor

    def cut(self, rank: int) -> Update:
        """The nearest matrix of that rank, in float64."""
        left = self.directions[:, :rank]
        return Update(left, self.change.double().T @ left)

    def relative_error(self, rank: int) -> float:
        """Norm of the part that this rank omits, relative to the change; 0 for a zero change."""
        tail = float(self.tails[min(rank, len(self.tails) - 1)])
        return tail / float(self.tails[0]) if tail else 0.0

    def sufficient_rank(self, projection: nn.Module) -> int:
        """The smallest rank, at least 1, that omits only what is rounding beside ``projection``'s weight.

        Rounding makes the difference of two float32 matrices a matrix of full rank. Its norm is a few 1e-8 of the
        weight's norm after one edit and 1e-6 after a thousand, so directions up to 1e-6 of that norm are omitted.
        """
        scale = max(float(projection.get_parameter("weight").norm(dtype=torch.float64)), float(self.tails[0]))
        return max(int((self.tails > _NEGLIGIBLE * scale).sum()), 1)


def decompose(change: Tensor) -> Decomposition:
    """The principal directions of a change (d_out, d_in).

    By the eigenvectors of ``D D^T``, which costs a fraction of a singular value decomposition where d_out is much
    smaller than d_in. Directions below 1e-8 of the largest are not resolved; none of them comes from an edit.
    """
    exact = change.double()
    energies, directions = torch.linalg.eigh(exact @ exact.T)
    energies = energies.flip(0).clamp(min=0)
    left = energies.flip(0).cumsum(0).flip(0)
    return Decomposition(change, directions.flip(1), torch.cat([left, left.new_zeros(1)]).sqrt())
