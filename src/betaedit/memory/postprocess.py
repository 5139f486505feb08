"""What some methods do to an update before it is added to a weight, and how its error is carried on (methods.md C).

Post-processing takes ``D`` to ``D'``. Algorithm 1 of the OTE-SE paper carries the error as ``E = (D' - D) C`` into the
next ``D = (R K^T - E) C^-1``, where ``C`` has gained ``K K^T``. With ``F = D - D'``, what was withheld, that is
``D = F + (R - F K) K^T C^-1``: the update that a weight holding everything withheld would get, and what was withheld.
So ``F`` is all that needs to be carried, no product with ``C`` is formed, and any rule of the memory will do.
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
        """The largest entries of ``D C0^(1/2)``, taken back (methods.md C.3: an interpretation of AdaEdit)."""
        whitened = change @ self.root
        return keep_largest(whitened, whitened.abs(), fraction) @ self.inverse


class Postprocessor:
    """Post-processes the updates of one edited matrix, and keeps the state that this needs; the caller owns it.

    A step is ``residuals``, then ``process``; ``settle`` makes it count. Without ``settle`` it never happened.

    Args:
        rule: Kind and strengths.
        moment: ``C0`` (d_in, d_in).
    """

    def __init__(self, rule: Postprocessing, moment: Float[Tensor, "d_in d_in"]) -> None:
        self.rule = rule
        self.withheld: Float[Tensor, "d_out d_in"] | None = None
        self._pending: Float[Tensor, "d_out d_in"] | None = None
        self._whitening = Whitening(moment) if rule.kind == "adaedit" else None
        self._ideal = _least_squares(moment, rule.simie_ridge) if rule.kind == "simie" else None

    def residuals(self, keys: Float[Tensor, "d_in b"], residuals: Float[Tensor, "d_out b"]) -> Float[Tensor, "d_out b"]:
        """What is left to write at ``keys`` once everything withheld is there: ``R - F K``; float64."""
        if self.withheld is None:
            return residuals.double()
        return residuals.to(self.withheld) - self.withheld @ keys.to(self.withheld)

    def wanted(self, keys: Float[Tensor, "d_in b"], residuals: Float[Tensor, "d_out b"]) -> Float[Tensor, "d_out b"]:
        """The inverse of ``residuals``: the ``R`` that left them to write; float64."""
        if self.withheld is None:
            return residuals.double()
        return residuals.to(self.withheld) + self.withheld @ keys.to(self.withheld)

    def process(
        self,
        update: Update,
        weight: Float[Tensor, "d_out d_in"],
        tokens: Float[Tensor, "d_in n"] | None = None,
    ) -> Float[Tensor, "d_out d_in"]:
        """``D'`` of ``D = update`` and what was withheld.

        Args:
            update: What the memory answered to ``residuals``.
            weight: The weight to which ``D'`` will be added.
            tokens: Inputs of the matrix at all tokens of prompts and targets; ``simie`` needs them.

        Raises:
            NumericalError: The result is not finite.
        """
        change = update.dense() if self.withheld is None else update.dense() + self.withheld
        processed = self._operate(change, weight.to(change), tokens)
        if not bool(torch.isfinite(processed).all()):
            raise NumericalError("the processed update is not finite.", hint="The model is near collapse: stop here.")
        self._pending = change - processed if self.rule.aligned else None
        return processed

    def settle(self, tokens: Float[Tensor, "d_in n"] | None = None) -> None:
        """The last processed update was written."""
        self.withheld = self._pending
        if self._ideal is not None and tokens is not None:
            self._ideal.carry(tokens)

    def snapshot(self) -> tuple[Tensor | None, dict[str, Any] | None]:
        """What ``settle`` changes, to go back to with ``restore``, once; no tensor is copied."""
        return self.withheld, None if self._ideal is None else self._ideal.snapshot()

    def restore(self, snapshot: tuple[Tensor | None, dict[str, Any] | None]) -> None:
        """Back to ``snapshot``, bit for bit."""
        self.withheld, ideal = snapshot
        if self._ideal is not None and ideal is not None:
            self._ideal.restore(ideal)

    def _operate(self, change: Tensor, weight: Tensor, tokens: Tensor | None) -> Tensor:
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
        return change


def _least_squares(moment: Float[Tensor, "d_in d_in"], ridge: float) -> AssociativeMemory:
    """SimIE's ``D X X^T (lambda I + sum X X^T)^-1`` is a memory with a ridge and a history, and nothing else (C.4)."""
    rule = MemoryRule(projector="none", leakage_weight=0.0, ridge=ridge, history=True)
    return AssociativeMemory(torch.zeros_like(moment), rule)
