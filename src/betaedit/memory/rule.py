"""The terms of the closed-form update, and its post-processing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ProjectorKind = Literal["none", "fixed", "refreshed"]
RefreshRule = Literal["normalised", "literal"]
FormKind = Literal["ridge", "equality"]
PostprocessKind = Literal["none", "rect", "prune", "simie", "adaedit", "sphere"]


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """The terms of one of the two forms of an update (methods.md section B).

    ``ridge`` is ``Delta = R K^T Q (K K^T Q + (lambda1 C0 + H) Q + lambda2 I)^-1``. ``equality`` requires
    ``Delta K = R`` with the smallest leakage, ``Delta = R (K^T N K + lambda_e I)^-1 K^T N``, and needs the inverse of
    the same system without ``K``: ``N = U (U^T (lambda1 C0 + H) U + lambda2 I)^-1 U^T``.

    Args:
        projector: ``none`` is ``Q = I``; ``fixed`` is the null space of ``C0``; ``refreshed`` follows the edits.
        leakage_weight: ``lambda1``, the weight of ``C0``; 0 leaves the leakage term out.
        ridge: ``lambda2``; 0 leaves it out.
        history: Whether ``H``, the second moment of all keys written so far, protects them.
        threshold: Eigenvalues below it span the null space.
        refresh_every: ``tau``, the number of edits between two projectors of a ``refreshed`` rule.
        refresh_rule: ``normalised`` thresholds ``(H / t + lambda1 C0) / (lambda1 + 1)`` as the official code does, and
            starts from ``C0``; ``literal`` thresholds ``lambda1 C0 + H`` as the paper writes it.
        refresh_weight: ``lambda1`` in these two, if it differs from the weight of the leakage term.
        form: ``ridge`` or ``equality``.
        slack: ``lambda_e`` of ``equality``, for batches of more than one key; one key is written exactly.
    """

    projector: ProjectorKind
    leakage_weight: float
    ridge: float
    history: bool
    threshold: float = 0.02
    refresh_every: int = 1000
    refresh_rule: RefreshRule = "normalised"
    refresh_weight: float | None = None
    form: FormKind = "ridge"
    slack: float = 0.0

    @property
    def thresholded_weight(self) -> float:
        """The weight of ``C0`` in the matrix whose null space is the refreshed projector."""
        return self.leakage_weight if self.refresh_weight is None else self.refresh_weight


@dataclass(frozen=True, slots=True)
class Postprocessing:
    """How updates are post-processed, with which strengths, and whether the error is corrected.

    Args:
        kind: ``none``, or a function of ``memory/postprocess.py``.
        aligned: Whether what post-processing removed is added to the next update.
        rect_fraction: Share of entries that ``rect`` keeps.
        prune_base: Base of the logarithm of ``prune``.
        simie_ridge: ``lambda`` of ``simie``.
        adaedit_fraction: Share of entries that ``adaedit`` keeps.
        sphere_share: Share of the weight's energy whose directions ``sphere`` spares.
        sphere_strength: How much of an update along these directions it takes away.
    """

    kind: PostprocessKind
    aligned: bool
    rect_fraction: float = 0.4
    prune_base: float = math.e
    simie_ridge: float = 10.0
    adaedit_fraction: float = 0.4
    sphere_share: float = 0.5
    sphere_strength: float = 0.5
