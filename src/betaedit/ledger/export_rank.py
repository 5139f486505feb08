"""How much of a change of weights a given rank holds, and which rank is enough."""

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
        tails: (d_out + 1) norm of what is left of ``D`` without its first ``r`` directions, for every ``r``.
    """

    change: Tensor
    directions: Tensor
    tails: Tensor

    def cut(self, rank: int) -> Update:
        """The nearest matrix of that rank, in float64."""
        left = self.directions[:, :rank]
        return Update(left, self.change.double().T @ left)

    def relative_error(self, rank: int) -> float:
        """Norm of what that rank leaves out, in norms of the change; 0 for no change at all."""
        tail = float(self.tails[min(rank, len(self.tails) - 1)])
        return tail / float(self.tails[0]) if tail else 0.0

    def sufficient_rank(self, projection: nn.Module) -> int:
        """The smallest rank, 1 or more, that leaves out what ``projection``'s weight cannot tell from rounding.

        Rounding makes the difference of two float32 matrices a matrix of full rank. What it adds has a few 1e-8 of the
        weight's norm for one edit, 1e-6 for a thousand: so directions that sum up to 1e-6 of that norm are no edits.
        """
        scale = max(float(projection.get_parameter("weight").norm(dtype=torch.float64)), float(self.tails[0]))
        return max(int((self.tails > _NEGLIGIBLE * scale).sum()), 1)


def decompose(change: Tensor) -> Decomposition:
    """The principal directions of a change (d_out, d_in).

    By the eigenvectors of ``D D^T``, which costs a fraction of a singular value decomposition where d_out is much
    smaller than d_in. Directions below 1e-8 of the largest are not resolved; none of them is an edit.
    """
    exact = change.double()
    energies, directions = torch.linalg.eigh(exact @ exact.T)
    energies = energies.flip(0).clamp(min=0)
    left = energies.flip(0).cumsum(0).flip(0)
    return Decomposition(change, directions.flip(1), torch.cat([left, left.new_zeros(1)]).sqrt())
