"""A square root of the inverse of the protected system of a memory, in its null space.

In the coordinates ``A^T k`` the system is the identity, so adding or removing keys changes ``A`` by a factor computed
from them alone. With ``B = A^T K``, and ``g`` and ``Z`` the eigenvalues and eigenvectors of ``B^T B``,

    (I + B B^T)^(-1/2) = I - B Z diag(1 / (r (1 + r))) Z^T B^T    with r = sqrt(1 + g)
    (I - B B^T)^(-1/2) = I + B Z diag(1 / (r (1 + r))) Z^T B^T    with r = sqrt(1 - g)

in which nothing cancels where ``g`` is small.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import MethodError, NumericalWarning
from betaedit.memory.reading import read_once

_BLOCK = 64
_CHUNK = 16
_AT_ONCE = 128  # the eigendecomposition of this many keys costs little compared with the products with A
_FEW_DIGITS = 1e-6
_LEAST = 1e-12
_DEBT = 1e-4


@dataclass(frozen=True)
class InverseRoot:
    """``A`` with ``A A^T = U M^-1 U^T``.

    Args:
        matrix: ``A`` (d_in, m), float64 or float32, in the memory layout of ``of``, otherwise products are slower.
        strong: (d_in, r), float64, the strong directions outside the space (``NullSpace``); none beside a float64
            matrix.
    """

    matrix: Float[Tensor, "d_in m"]
    strong: Float[Tensor, "d_in r"]

    @property
    def like(self) -> Tensor:
        """A tensor of the type and device of all results; independent of the type of the matrix."""
        return self.strong

    @classmethod
    def of(
        cls,
        basis: Float[Tensor, "d_in m"],
        energies: Float[Tensor, " m"],
        strong: Float[Tensor, "d_in r"],
        dtype: torch.dtype,
    ) -> InverseRoot:
        """``U diag(energies)^(-1/2)``, kept in ``dtype``, of a ``basis`` along which ``M`` is ``diag(energies)``."""
        scaled = (basis / energies.sqrt()).to(dtype)
        if dtype == torch.float64:  # column-major for ``read_once``
            return cls(scaled.T.contiguous().T, strong.new_empty(len(scaled), 0))
        return cls(scaled.contiguous(), strong)  # row-major for the blocks of ``project``

    def read(self, keys: Float[Tensor, "d_in b"]) -> tuple[Float[Tensor, "m b"], Float[Tensor, "d_in b"] | None]:
        """``A^T K``, and ``A A^T K`` if ``read_once`` computes it in the same pass."""
        both = read_once(self.matrix, keys)
        if both is None:
            return self.project(keys), None
        m = self.matrix.shape[1]
        return both[:m], both[m:]

    def project(self, keys: Float[Tensor, "d_in b"]) -> Float[Tensor, "m b"]:
        """``A^T K`` in float64.

        Error: with a float32 matrix less than 1e-6 of its norm times that of a key without its strong directions. A key
        that lies mostly outside the space would lose that much of its small part inside: so the strong directions,
        orthogonal to the space, are first removed in float64, and sums over blocks of rows are added in float64.
        """
        if self.matrix.dtype == torch.float64:
            return self.matrix.T @ keys
        weakened = (keys - self.strong @ (self.strong.T @ keys)).float()
        # The blocks' sums take m numbers per block and key; a few keys at a time keep that far below the matrix.
        return torch.cat([self._project_blocks(chunk) for chunk in torch.split(weakened, _CHUNK, dim=1)], dim=1)

    def _project_blocks(self, keys: Float[Tensor, "d_in b"]) -> Float[Tensor, "m b"]:
        n_blocks = len(keys) // _BLOCK
        whole = n_blocks * _BLOCK
        blocks = self.matrix[:whole].view(n_blocks, _BLOCK, self.matrix.shape[1])
        sums = keys[:whole].reshape(n_blocks, _BLOCK, keys.shape[1]).mT @ blocks
        rest = keys[whole:].T @ self.matrix[whole:]
        return (sums.sum(dim=0, dtype=torch.float64) + rest).T

    def lift(self, coordinates: Float[Tensor, "m b"]) -> Float[Tensor, "d_in b"]:
        """``A X`` in float64. Error: with a float32 matrix 2e-7 (``m`` = 1,000) to 5e-7 (11,000) of a column's norm."""
        return (self.matrix @ coordinates.to(self.matrix.dtype)).double()

    def with_keys(self, keys: Float[Tensor, "d_in n"]) -> InverseRoot:
        """The root for ``M + U^T K K^T U``. Cost: O(d_in m n)."""
        return self._changed(keys, 1)

    def without_keys(self, keys: Float[Tensor, "d_in n"]) -> InverseRoot:
        """The root for ``M - U^T K K^T U``.

        Error: relative to the energy ``e`` that remains of a key's energy ``w`` along some direction, ``(w / e)^1.5``
        roundings, with a warning when less than a millionth remains.
        Raises: MethodError when the difference is not positive.
        Cost: O(d_in m n).
        """
        return self._changed(keys, -1)

    def has(self, keys: Float[Tensor, "d_in n"], ridge: float) -> bool:
        """Whether ``M`` contained ``keys``, which are already removed from it, in addition to ``ridge``.

        Protected energies are never negative; in single precision a tolerance is needed.
        Cost: one eigendecomposition, O(d_in m^2 + m^3).
        """
        matrix = self.matrix.double()
        inverse, directions = torch.linalg.eigh(matrix.T @ matrix)
        energies = 1 / inverse.clamp(min=torch.finfo(inverse.dtype).tiny)
        inside = energies @ (directions.T @ self.project(keys)).square()
        return float(energies.min()) >= ridge - _DEBT * float(torch.cat([energies, inside]).max())

    def _changed(self, keys: Float[Tensor, "d_in n"], sign: int) -> InverseRoot:
        root = self
        for at in range(0, keys.shape[1], _AT_ONCE):
            root = root._changed_by_few(keys[:, at : at + _AT_ONCE], sign)
        return root

    def _changed_by_few(self, keys: Float[Tensor, "d_in n"], sign: int) -> InverseRoot:
        columns = self.project(keys)
        energies, directions = torch.linalg.eigh(columns.T @ columns)
        changed = 1 + sign * energies
        if bool((changed < -_DEBT).any()):
            raise not_remembered()
        if bool((changed < _FEW_DIGITS).any()):
            text = "less than a millionth of the energy along a forgotten key remains: the result is less exact."
            warnings.warn(text, NumericalWarning, stacklevel=2)
        roots = changed.clamp(min=_LEAST).sqrt()
        columns, factors = columns @ directions, -sign / (roots * (1 + roots))
        matrix = self.matrix.double()
        laid_alike = torch.empty_like(matrix)
        matrix = torch.addmm(matrix, (matrix @ columns).mul_(factors), columns.T, out=laid_alike)
        return replace(self, matrix=matrix.to(self.matrix.dtype))


def not_remembered() -> MethodError:
    """The error for forgetting keys that were never written."""
    return MethodError(
        "not all of these keys are among those remembered.", hint="Forget keys with the values they were written with."
    )
