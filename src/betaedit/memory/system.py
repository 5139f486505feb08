"""A positive definite system that grows by a low-rank term, kept as its inverse.

``M = I + B B^T`` with a column of ``B`` per key. Its inverse is ``I - V V^T``, and a new batch of columns ``P`` adds
as many to ``V``: with ``Y = M^-1 P`` and the Cholesky factor ``L L^T = I + P^T Y``,
``(M + P P^T)^-1 = M^-1 - (Y L^-T) (Y L^-T)^T``. So ``B`` and its ``n x n`` system need not be kept.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import NumericalError
from betaedit.memory.columns import Columns


@dataclass(frozen=True)
class Extension:
    """The extension of a system ``M`` by ``P P^T``.

    Args:
        columns: ``Y L^-T`` (m, b), the next columns of ``V``.
        gram: ``P^T M^-1 P`` (b, b).
        factor: ``L`` (b, b), lower triangular.
    """

    columns: Float[Tensor, "m b"]
    gram: Float[Tensor, "b b"]
    factor: Float[Tensor, "b b"]

    @property
    def solution(self) -> Float[Tensor, "m b"]:
        """``(M + P P^T)^-1 P``."""
        solution: Tensor = torch.linalg.solve_triangular(self.factor.T, self.columns.T, upper=True).T
        return solution

    @property
    def unextended(self) -> Float[Tensor, "m b"]:
        """``M^-1 P``, the solution of the system as it was."""
        return self.columns @ self.factor.T

    def constrained(self, gram: Float[Tensor, "b b"]) -> Float[Tensor, "m b"]:
        """``M^-1 P gram^-1``. Raises: NumericalError when ``gram`` is singular."""
        directions: Tensor
        directions, info = torch.linalg.solve_ex(gram, self.unextended, left=False)
        if int(info) != 0:
            raise NumericalError(
                "the constraints cannot all hold: some keys are equal or zero.",
                hint="Write facts whose subjects differ, or raise equality_slack (lambda_e).",
            )
        return directions


class GrowingSystem:
    """``I + B B^T``, float64.

    Args:
        like: A tensor of the type and on the device wanted.
        size: How many dimensions it has, ``m``.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.columns = Columns(like, size)

    def fork(self) -> GrowingSystem:
        """A copy of the present system that shares its storage; only one of the two may be extended."""
        twin = copy(self)
        twin.columns = copy(self.columns)
        return twin

    def extension(self, added: Float[Tensor, "m b"]) -> Extension:
        """The extension by the columns ``added`` of ``B``; does not change the system.

        Raises: NumericalError when the system extended by them is not positive definite and finite.
        Cost: two readings of ``V``, O(m n b).
        """
        V = self.columns.matrix
        Y = added - V @ (V.T @ added)
        gram = added.T @ Y
        corner = torch.eye(len(gram), dtype=added.dtype, device=added.device) + gram
        factor, info = torch.linalg.cholesky_ex(corner)
        if int(info) != 0 or not bool(torch.isfinite(factor).all()):
            raise NumericalError(
                "the keys' system is not positive definite.",
                hint="Raise lambda2 (ridge), or check for very large keys.",
            )
        columns = torch.linalg.solve_triangular(factor, Y.T, upper=False)
        return Extension(columns.T, gram, factor)

    def extend(self, extension: Extension) -> None:
        """Apply an ``extension`` of the present system."""
        self.columns.append(extension.columns)
