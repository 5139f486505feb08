"""Which terms of the one closed-form update are switched on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProjectorKind = Literal["none", "fixed", "refreshed"]
RefreshRule = Literal["normalised", "literal"]


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """The terms of ``Delta = R K^T Q (K K^T Q + (lambda1 C0 + H) Q + lambda2 I)^-1`` (methods.md section B).

    Args:
        projector: ``none`` is ``Q = I``; ``fixed`` is the null space of ``C0``; ``refreshed`` follows the edits.
        leakage_weight: ``lambda1``, the weight on ``C0``; 0 leaves the leakage term out.
        ridge: ``lambda2``; 0 leaves it out.
        history: Whether ``H``, the second moment of all keys written so far, protects them.
        threshold: Eigenvalues below it span the null space.
        refresh_every: ``tau``, the number of edits between two projectors of a ``refreshed`` rule.
        refresh_rule: ``normalised`` thresholds ``(H / t + lambda1 C0) / (lambda1 + 1)`` as the official code does, and
            starts from ``C0``; ``literal`` thresholds ``lambda1 C0 + H`` as the paper writes it.
    """

    projector: ProjectorKind
    leakage_weight: float
    ridge: float
    history: bool
    threshold: float = 0.02
    refresh_every: int = 1000
    refresh_rule: RefreshRule = "normalised"
