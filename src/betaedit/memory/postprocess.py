"""Post-processing of an update before it is added to a weight, and correction of its error (methods.md C).

Post-processing takes ``D`` to ``D'``. Algorithm 1 of the OTE-SE paper adds the error ``E = (D' - D) C`` to the
next ``D = (R K^T - E) C^-1``, where ``C`` has gained ``K K^T``. With the removed part ``F = D - D'`` this is
``D = F + (R - F K) K^T C^-1``: ``F`` plus the update of a weight that contains ``F``. So only ``F`` is kept, no product
with ``C`` is formed, and any rule of the memory can be used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import NumericalError
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.projector import Spectrum
from betaedit.memory.rule import MemoryRule, Postprocessing
from betaedit.memory.update import Update

_EPSILON = 1e-8
_FLOOR = 1e-12


def keep_largest(
    change: Float[Tensor, "d_out d_in"], scores: Float[Tensor, "d_out d_in"], fraction: float
) -> Float[Tensor, "d_out d_in"]:
    """``change`` with 0 wherever its score lies below the ``int(n (1 - fraction))``-th smallest of the ``n``."""
    rank = int(scores.numel() * (1 - fraction) + _EPSILON)
    if rank == 0:
        return change
    return torch.where(scores >= scores.flatten().kthvalue(rank).values, change, torch.zeros_like(change))


def rect(
    change: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], fraction: float
) -> Float[Tensor, "d_out d_in"]:
    """The entries with the largest relative change ``|D / (W + 1e-8)|`` (methods.md C.1)."""
    return keep_largest(change, (change / (weight + _EPSILON)).abs(), fraction)


def prune(
    change: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], base: float
) -> Float[Tensor, "d_out d_in"]:
    """``s -> log(s) - log(s*) + s*`` for singular values above ``s*``, the largest of ``weight`` (methods.md C.2).

    Also what PRUNE itself does once, given ``W_T - W_0`` and ``W_0``.
    Cost: two singular value decompositions, none where the Frobenius norms show that no singular value is above.
    """
    if float(change.norm()) <= float(weight.norm()) / min(weight.shape) ** 0.5:
        return change
    bound = torch.linalg.matrix_norm(weight, 2)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    compressed = torch.where(values > bound, (values / bound).log() / math.log(base) + bound, values)
    pruned: Tensor = (left * compressed) @ right
    return pruned


def sphere(
    change: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], share: float, strength: float
) -> Float[Tensor, "d_out d_in"]:
    """``D (I - strength U U^T)``: less along the main directions of the weight's rows (methods.md B.10, SPHERE).

    ``U`` are the eigenvectors of largest eigenvalue of ``W^^T W^ / d_out``, where ``W^`` has rows of length one, up to
    and with the one at which their sum passes ``share`` of the trace.
    Cost: a singular value decomposition of ``weight``.
    """
    rows = weight / (weight.norm(dim=1, keepdim=True) + _EPSILON)
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    energies = values.square().cumsum(0)
    main = directions[: int((energies <= share * energies[-1]).sum()) + 1]
    spared: Tensor = change - strength * (change @ main.T) @ main
    return spared


class Whitening:
    """``C0^(1/2)`` and its inverse, in which keys of ordinary text are uncorrelated and of unit energy.

    Args:
        moment: ``C0`` (d_in, d_in).
    """

    def __init__(self, moment: Float[Tensor, "d_in d_in"]) -> None:
        spectrum = Spectrum.of(moment)
        values, vectors = spectrum.values, spectrum.vectors
        scales = values.clamp(min=_FLOOR * float(values[-1])).sqrt()
        self.root: Float[Tensor, "d_in d_in"] = (vectors * scales) @ vectors.T
        self.inverse: Float[Tensor, "d_in d_in"] = (vectors / scales) @ vectors.T

    def sparsify(self, change: Float[Tensor, "d_out d_in"], fraction: float) -> Float[Tensor, "d_out d_in"]:
        """The largest entries of ``D C0^(1/2)``, transformed back (methods.md C.3: an interpretation of AdaEdit)."""
        whitened = change @ self.root
        return keep_largest(whitened, whitened.abs(), fraction) @ self.inverse


class Postprocessor:
    """Post-processes the updates of one edited matrix, and keeps the state needed for it; the caller owns it.

    A step is ``residuals``, then ``process``, then ``settle``. Without ``settle`` the state does not change.

    Args:
        rule: Kind and strengths.
        moment: ``C0`` (d_in, d_in).
    """

    def __init__(self, rule: Postprocessing, moment: Float[Tensor, "d_in d_in"]) -> None:
        self.rule = rule
        self.removed: Float[Tensor, "d_out d_in"] | None = None
        self._pending: Float[Tensor, "d_out d_in"] | None = None
        self._whitening = Whitening(moment) if rule.kind == "adaedit" else None
        self._ideal = _least_squares(moment, rule.simie_ridge) if rule.kind == "simie" else None

    def residuals(self, keys: Float[Tensor, "d_in b"], residuals: Float[Tensor, "d_out b"]) -> Float[Tensor, "d_out b"]:
        """The residuals left to write at ``keys`` beside the removed part: ``R - F K``; float64."""
        if self.removed is None:
            return residuals.double()
        return residuals.to(self.removed) - self.removed @ keys.to(self.removed)

    def wanted(self, keys: Float[Tensor, "d_in b"], residuals: Float[Tensor, "d_out b"]) -> Float[Tensor, "d_out b"]:
        """The inverse of ``residuals``: the original ``R``; float64."""
        if self.removed is None:
            return residuals.double()
        return residuals.to(self.removed) + self.removed @ keys.to(self.removed)

    def process(
        self,
        update: Update,
        weight: Float[Tensor, "d_out d_in"],
        tokens: Float[Tensor, "d_in n"] | None = None,
    ) -> Float[Tensor, "d_out d_in"]:
        """``D'`` of ``D``, the ``update`` plus the part removed before.

        Args:
            update: The memory's solution for ``residuals``.
            weight: The weight to which ``D'`` will be added.
            tokens: Inputs of the matrix at all tokens of prompts and targets; ``simie`` needs them.

        Raises:
            NumericalError: The result is not finite.
        """
        change = update.dense() if self.removed is None else update.dense() + self.removed
        processed = self._apply(change, weight.to(change), tokens)
        if not bool(torch.isfinite(processed).all()):
            raise NumericalError(
                "the processed update is not finite.", hint="The model is near collapse: stop editing."
            )
        self._pending = change - processed if self.rule.aligned else None
        return processed

    def settle(self, tokens: Float[Tensor, "d_in n"] | None = None) -> None:
        """Keep the part removed from the last processed update, which was written."""
        self.removed = self._pending
        if self._ideal is not None and tokens is not None:
            self._ideal.carry(tokens)

    def snapshot(self) -> tuple[Tensor | None, dict[str, Any] | None]:
        """What ``settle`` changes, for one ``restore``; no tensor is copied."""
        return self.removed, None if self._ideal is None else self._ideal.snapshot()

    def restore(self, snapshot: tuple[Tensor | None, dict[str, Any] | None]) -> None:
        """Back to ``snapshot``, bit for bit."""
        self.removed, ideal = snapshot
        if self._ideal is not None and ideal is not None:
            self._ideal.restore(ideal)

    def _apply(self, change: Tensor, weight: Tensor, tokens: Tensor | None) -> Tensor:
        if self._whitening is not None:
            return self._whitening.sparsify(change, self.rule.adaedit_fraction)
        if self._ideal is not None and tokens is not None:
            if self._ideal.fold_due():
                self._ideal.fold()
            return self._ideal.solve(tokens, change @ tokens.to(change)).dense()
        if self.rule.kind == "rect":
            return rect(change, weight, self.rule.rect_fraction)
        if self.rule.kind == "prune":
            return prune(change, weight, self.rule.prune_base)
        if self.rule.kind == "sphere":
            return sphere(change, weight, self.rule.sphere_share, self.rule.sphere_strength)
        return change


def _least_squares(moment: Float[Tensor, "d_in d_in"], ridge: float) -> AssociativeMemory:
    """SimIE's ``D X X^T (lambda I + sum X X^T)^-1`` is a memory with only a ridge and a history (C.4)."""
    rule = MemoryRule(projector="none", leakage_weight=0.0, ridge=ridge, history=True)
    return AssociativeMemory(torch.zeros_like(moment), rule)
