"""The pseudo null space of a second moment: directions in which protected keys have almost no energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import NumericalError

_BLOCK = 64
_CHUNK = 16
_LEFT_OUTSIDE = 4.0
_STRONG_SHARE = 4


@dataclass(frozen=True)
class NullSpace:
    """An orthonormal basis of the directions kept.

    Args:
        basis: ``U`` (d_in, m), float64 or float32; the projector is ``U U^T``.
        eigenvalues: (m,) eigenvalues of the thresholded matrix in this space, rising: its energy along each column as
            long as the basis is not turned.
        energy_share: Share of the whole trace that lies in these directions.
        strong: (d_in, r), float64, the strongest directions outside: all but so many that those left out hold at most
            four times the energy of the space, and no more than a quarter of ``m``. None beside a float64 basis.
    """

    basis: Float[Tensor, "d_in m"]
    eigenvalues: Float[Tensor, " m"]
    energy_share: float
    strong: Float[Tensor, "d_in r"]

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return self.basis.shape[1]

    def project(self, keys: Float[Tensor, "d_in b"]) -> Float[Tensor, "m b"]:
        """``U^T K`` in float64.

        Error: with a float32 basis about 1e-7 of the norm of each key without its strong directions. A key that lies
        mostly outside the space would lose that much of its small part inside: so the strong directions, orthogonal
        to the space, are taken out in float64 first, and sums run over blocks of rows that are added in float64.
        """
        if self.basis.dtype == torch.float64:
            return self.basis.T @ keys
        weakened = (keys - self.strong @ (self.strong.T @ keys)).float()
        # The blocks' sums take m numbers per block and key; a few keys at a time keep that far below the basis.
        return torch.cat([self._project_blocks(chunk) for chunk in torch.split(weakened, _CHUNK, dim=1)], dim=1)

    def _project_blocks(self, keys: Float[Tensor, "d_in b"]) -> Float[Tensor, "m b"]:
        n_blocks = len(keys) // _BLOCK
        whole = n_blocks * _BLOCK
        blocks = self.basis[:whole].view(n_blocks, _BLOCK, self.rank)
        sums = keys[:whole].reshape(n_blocks, _BLOCK, keys.shape[1]).mT @ blocks
        rest = keys[whole:].T @ self.basis[whole:]
        return (sums.sum(dim=0, dtype=torch.float64) + rest).T

    def lift(self, coordinates: Float[Tensor, "m b"]) -> Float[Tensor, "d_in b"]:
        """``U X`` in float64. Error: with a float32 basis 2e-7 (``m`` = 1,000) to 5e-7 (11,000) of a column's norm."""
        return (self.basis @ coordinates.to(self.basis.dtype)).double()

    def turned(self, rotation: Float[Tensor, "m m"]) -> NullSpace:
        """The same space with the basis ``U Z``."""
        return replace(self, basis=(self.basis.double() @ rotation).to(self.basis.dtype))

    def to(self, dtype: torch.dtype) -> NullSpace:
        """The same space with its basis in ``dtype``."""
        if dtype == torch.float64:
            return replace(self, strong=self.strong.new_empty(self.strong.shape[0], 0))
        # Row after row in memory, as the blocks of ``project`` need it.
        return replace(self, basis=self.basis.to(dtype, memory_format=torch.contiguous_format))


def build_null_space(moment: Float[Tensor, "d_in d_in"], threshold: float | None) -> NullSpace:
    """The eigenvectors of a symmetric matrix whose eigenvalues lie below ``threshold``; all of them without one.

    Law: ``U^T U = I`` and ``U^T moment U`` is diagonal.
    Raises: NumericalError when the matrix is not finite, or no direction is left.
    Cost: one float64 eigendecomposition, O(d_in^3). Source: methods.md B.6 (AlphaEdit's projector).
    """
    if not bool(torch.isfinite(moment).all()):
        raise NumericalError(
            "the second moment holds values that are not finite.", mend="Compute the statistics again."
        )
    values, vectors = torch.linalg.eigh(moment.double())
    if threshold is None:
        return NullSpace(vectors, values, 1.0, vectors.new_empty(len(vectors), 0))
    keep = values < threshold
    if not bool(keep.any()):
        raise NumericalError(
            f"no direction has an eigenvalue below {threshold:g} (the smallest is {values[0].item():.3g}).",
            mend="Raise nullspace_threshold.",
        )
    energies = values.clamp(min=0)
    inside = energies[keep].sum()
    total = energies.sum().clamp(min=torch.finfo(values.dtype).tiny)
    left = energies[~keep].cumsum(dim=0)
    n_strong = min(int((left > _LEFT_OUTSIDE * inside).sum()), int(keep.sum()) // _STRONG_SHARE)
    strong = vectors[:, len(values) - n_strong :].clone()
    return NullSpace(vectors[:, keep], values[keep], float(inside / total), strong)
