"""The pseudo null space of a second moment: directions in which protected keys have almost no energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import NumericalError

_LEFT_OUTSIDE = 4.0
_STRONG_SHARE = 4


@dataclass(frozen=True)
class NullSpace:
    """An orthonormal basis of the directions kept.

    Args:
        basis: ``U`` (d_in, m), float64; the projector is ``U U^T``.
        eigenvalues: (m,) eigenvalues of the thresholded matrix in this space, rising: its energy along each column.
        energy_share: Share of the whole trace that lies in these directions.
        strong: (d_in, r), float64, the strongest directions outside: at most a quarter of ``m``, and so many that the
            others hold at most four times the energy of the space.
    """

    basis: Float[Tensor, "d_in m"]
    eigenvalues: Float[Tensor, " m"]
    energy_share: float
    strong: Float[Tensor, "d_in r"]

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return self.basis.shape[1]


@dataclass(frozen=True)
class Spectrum:
    """A symmetric matrix as ``V diag(values) V^T``, float64.

    Args:
        values: (d_in,), rising.
        vectors: ``V`` (d_in, d_in), a column each.
    """

    values: Float[Tensor, " d_in"]
    vectors: Float[Tensor, "d_in d_in"]

    @classmethod
    def of(cls, moment: Float[Tensor, "d_in d_in"]) -> Spectrum:
        """That of ``moment``.

        Raises: NumericalError when the matrix is not finite.
        Cost: one float64 eigendecomposition, O(d_in^3).
        """
        if not bool(torch.isfinite(moment).all()):
            raise NumericalError("the second moment is not finite.", hint="Compute the statistics again.")
        values, vectors = torch.linalg.eigh(moment.double())
        # The same layout as when read from disk: on some processors the rounding of products depends on it.
        return cls(values, vectors.contiguous())

    def scaled(self, factor: float) -> Spectrum:
        """Of ``factor >= 0`` times the matrix."""
        return replace(self, values=factor * self.values)

    def null_space(self, threshold: float | None) -> NullSpace:
        """The eigenvectors whose eigenvalues lie below ``threshold``; all of them without one.

        Law: ``U^T U = I`` and ``U^T moment U`` is diagonal.
        Raises: NumericalError when no direction is left. Source: methods.md B.6 (AlphaEdit's projector).
        """
        values, vectors = self.values, self.vectors
        if threshold is None:
            return NullSpace(vectors, values, 1.0, vectors.new_empty(len(vectors), 0))
        keep = values < threshold
        if not bool(keep.any()):
            raise NumericalError(
                f"no direction has an eigenvalue below {threshold:g} (the smallest is {values[0].item():.3g}).",
                hint="Raise nullspace_threshold.",
            )
        energies = values.clamp(min=0)
        inside = energies[keep].sum()
        total = energies.sum().clamp(min=torch.finfo(values.dtype).tiny)
        left = energies[~keep].cumsum(dim=0)
        n_strong = min(int((left > _LEFT_OUTSIDE * inside).sum()), int(keep.sum()) // _STRONG_SHARE)
        strong = vectors[:, len(values) - n_strong :].clone()
        return NullSpace(vectors[:, keep], values[keep], float(inside / total), strong)
