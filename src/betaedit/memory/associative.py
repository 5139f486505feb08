"""The linear associative memory of one matrix: what is protected, and the update that writes new keys.

Notation (docs/methods.md): ``C0`` second moment, ``H = sum K K^T`` history, ``Q = U U^T`` projector,
``C = lambda1 C0 + H``, ``K~ = U^T K``, ``D`` diagonal. The rule
``Delta = R K^T U (lambda2 I + U^T (K K^T + C) U)^-1 U^T`` is solved without ever factorizing a d x d matrix per edit:
``U`` is rotated so that ``lambda2 I + U^T C U`` is the diagonal ``D`` at the last fold, and keys written since then
enter as columns ``B`` of a low-rank term, through a Cholesky factor of ``I + B^T D^-1 B`` that grows by a row per key.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import NumericalError, NumericalWarning, ShapeError
from betaedit.memory.projector import NullSpace, build_null_space
from betaedit.memory.rule import MemoryRule
from betaedit.memory.update import Update

FOLD_AFTER = 512
_MATRIX = 2
_RELATIVE_FLOOR = 1e-12
_RELATIVE_ROUNDING = 1e-6


class AssociativeMemory:
    """The state of one edited matrix under one rule; the caller owns it.

    Args:
        moment: ``C0`` (d_in, d_in), mean of ``k k^T`` over ordinary text.
        rule: The terms switched on.
        fold_after: How many written keys are carried as low-rank columns before they are folded into the diagonal;
            changes the cost and nothing else.

    Raises:
        ShapeError: ``moment`` is not square.
        NumericalError: The system is not positive definite, or no direction lies under the threshold.
    """

    def __init__(self, moment: Float[Tensor, "d_in d_in"], rule: MemoryRule, *, fold_after: int = FOLD_AFTER) -> None:
        if moment.dim() != _MATRIX or moment.shape[0] != moment.shape[1]:
            raise ShapeError(
                f"a second moment is square, not {tuple(moment.shape)}.", mend="Check the statistics file."
            )
        self.rule = rule
        self.moment = moment.double()
        self.n_written = 0
        self.last_refresh = 0
        self._fold_after = fold_after
        self._history = torch.zeros_like(self.moment) if rule.history else None
        self._pending: Float[Tensor, "d_in n"] = self.moment.new_zeros(self.d_in, 0)
        self._basis: Float[Tensor, "d_in m"]
        self._diagonal: Float[Tensor, " m"]
        self._columns: Float[Tensor, "m n"]
        self._factor: Float[Tensor, "n n"]
        self.null_space = self._project()
        # With no key written yet the eigenvectors of C0 diagonalize the system as they are.
        basis = self.null_space.basis
        self._install(basis, rule.leakage_weight * (basis * (self.moment @ basis)).sum(dim=0))

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return self.moment.shape[0]

    def solve(self, keys: Float[Tensor, "d_in b"], residuals: Float[Tensor, "d_out b"]) -> Update:
        """The update that writes ``residuals`` at ``keys`` with the least leakage the rule allows.

        Columns are facts; any float type in, float64 factors out. Nothing is remembered: see ``remember``.
        Law: equals ``R K^T Q (K K^T Q + (lambda1 C0 + H) Q + lambda2 I)^-1``.
        Raises: ShapeError before any work; NumericalError when the system is not positive definite.
        Cost: O(d_in m b + m n b) with m kept directions and n keys since the last fold.
        """
        self._check(keys, residuals)
        projected = self._basis.T @ keys.to(self._basis)
        scaled = projected / self._diagonal[:, None]
        cross, factor = self._extend(projected, scaled)
        if len(cross):
            correction = torch.linalg.solve_triangular(self._factor.T, cross, upper=True)
            scaled = scaled - (self._columns / self._diagonal[:, None]) @ correction
        right = self._basis @ torch.cholesky_solve(scaled.T, factor).T
        update = Update(residuals.to(right), right)
        if not update.is_finite():
            raise NumericalError("the update is not finite.", mend="Look at the keys and residuals for overflow.")
        return update

    def remember(self, keys: Float[Tensor, "d_in b"]) -> None:
        """Count ``keys`` as written; under a rule with history later updates protect them.

        Raises: as ``solve``; a refused call remembers nothing.
        """
        self._check_keys(keys)
        if not self.rule.history:
            self.n_written += keys.shape[1]
            return
        keys = keys.to(self._pending)
        projected = self._basis.T @ keys
        cross, factor = self._extend(projected, projected / self._diagonal[:, None])
        self.n_written += keys.shape[1]
        n, b = self._factor.shape[0], keys.shape[1]
        grown = self._factor.new_zeros(n + b, n + b)
        grown[:n, :n], grown[n:, :n], grown[n:, n:] = self._factor, cross.T, factor
        self._factor = grown
        self._columns = torch.cat([self._columns, projected], dim=1)
        self._pending = torch.cat([self._pending, keys], dim=1)
        if self._pending.shape[1] >= self._fold_after:
            self.fold()

    def fold(self) -> None:
        """Move the carried keys into the diagonal: one eigendecomposition; later updates are the same."""
        self._absorb_pending()
        self._diagonalize()

    def refresh_due(self) -> bool:
        """Whether the rule asks for a new projector before the next edit."""
        due = self.n_written - self.last_refresh >= self.rule.refresh_every
        return self.rule.projector == "refreshed" and due

    def refresh(self) -> None:
        """A new projector from text and history (methods.md B.7), whatever ``refresh_every`` says."""
        self._absorb_pending()
        self.null_space = self._project()
        self.last_refresh = self.n_written
        self._diagonalize()

    def _project(self) -> NullSpace:
        rule = self.rule
        if rule.projector == "none":
            return build_null_space(self.moment, None)
        if rule.projector == "refreshed" and rule.refresh_rule == "literal":
            return build_null_space(self._protected(), rule.threshold)
        if self._history is None or self.n_written == 0 or rule.projector == "fixed":
            return build_null_space(self.moment, rule.threshold)
        blend = (self._history / self.n_written + rule.leakage_weight * self.moment) / (rule.leakage_weight + 1)
        return build_null_space(blend, rule.threshold)

    def _protected(self) -> Float[Tensor, "d_in d_in"]:
        protected = self.rule.leakage_weight * self.moment
        return protected if self._history is None else protected + self._history

    def _absorb_pending(self) -> None:
        if self._history is not None:
            self._history.addmm_(self._pending, self._pending.T)
        self._pending = self._pending[:, :0]

    def _diagonalize(self) -> None:
        """Rotate the null space's basis so that ``U^T C U`` is diagonal."""
        basis = self.null_space.basis
        energies, rotation = torch.linalg.eigh(basis.T @ self._protected() @ basis)
        self._install(basis @ rotation, energies)

    def _install(self, basis: Float[Tensor, "d_in m"], energies: Float[Tensor, " m"]) -> None:
        """Take ``lambda2 I + diag(energies)`` as the system in ``basis``, with no key carried beside it."""
        diagonal = energies + self.rule.ridge
        largest = float(diagonal.max())
        floor = _RELATIVE_FLOOR * largest
        if largest <= 0 or bool((diagonal < -_RELATIVE_ROUNDING * largest).any()):
            raise NumericalError(
                "the memory's system is not positive definite.",
                mend="Use more tokens of statistics, or a rule with a ridge (lambda2 > 0).",
            )
        if (low := int((diagonal < floor).sum())) > 0:
            text = f"{low} eigenvalues were raised to {floor:.3g} to stay positive."
            warnings.warn(text, NumericalWarning, stacklevel=3)
        self._basis = basis
        self._diagonal = diagonal.clamp(min=floor)
        self._columns = basis.new_zeros(basis.shape[1], 0)
        self._factor = basis.new_zeros(0, 0)

    def _extend(self, projected: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """The next rows of the factor of ``I + B^T D^-1 B``: ``(n, b)`` transposed cross part, ``(b, b)`` corner."""
        identity = torch.eye(projected.shape[1], dtype=projected.dtype, device=projected.device)
        cross = torch.linalg.solve_triangular(self._factor, self._columns.T @ scaled, upper=False)
        corner, info = torch.linalg.cholesky_ex(identity + projected.T @ scaled - cross.T @ cross)
        if int(info) != 0:
            raise NumericalError("the keys' system is not positive definite.", mend="Raise lambda2 (ridge).")
        return cross, corner

    def _check(self, keys: Tensor, residuals: Tensor) -> None:
        self._check_keys(keys)
        if residuals.dim() != _MATRIX or keys.shape[1] != residuals.shape[1]:
            raise ShapeError(
                f"{keys.shape[1]} keys but {residuals.shape[-1]} residuals.", mend="Give one column of each per fact."
            )

    def _check_keys(self, keys: Tensor) -> None:
        if keys.dim() != _MATRIX or keys.shape[0] != self.d_in:
            raise ShapeError(f"keys are ({self.d_in}, b) columns, not {tuple(keys.shape)}.", mend="Check the layer.")
        if not bool(torch.isfinite(keys).all()):
            raise NumericalError("the keys are not finite.", mend="Look at the model's activations for overflow.")
