"""The linear associative memory of one matrix: protected keys, and the update that writes new ones.

Notation (docs/methods.md): ``C0`` second moment, ``H = sum K K^T`` history, ``Q = U U^T`` projector,
``C = lambda1 C0 + H``, ``M = lambda2 I + U^T C U``. The rule
``Delta = R K^T U (U^T K K^T U + M)^-1 U^T`` is solved without ever factorizing a d x d matrix per edit: ``A`` with
``A A^T = U M^-1 U^T``, of the last fold, is kept (``root.py``). In its coordinates ``M`` is the identity, and keys
written since then are a low-rank term beside that (``system.py``). A fold needs ``A`` and those keys alone, so ``C0``
and ``H`` are kept only under a rule that cuts new projectors from them. The equality form is solved with the same
system.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from betaedit.errors import ConfigError, NumericalError, NumericalWarning, ShapeError
from betaedit.memory.columns import Columns
from betaedit.memory.projector import NullSpace, Spectrum
from betaedit.memory.root import InverseRoot, not_remembered
from betaedit.memory.rule import MemoryRule
from betaedit.memory.system import Extension, GrowingSystem
from betaedit.memory.update import Update

KEYS_PER_FOLD = 128
"""Default number of pending keys before a fold. Folding a key always costs the same; each pending key makes an edit
more expensive by two to three ``1 / d_in``."""

_MATRIX = 2
_LEFT_OF_A_NEW_KEY = 0.1
_RELATIVE_FLOOR = 1e-12
_RELATIVE_ROUNDING = 1e-6


class _Solved(NamedTuple):
    """The solution for the keys solved last.

    Args:
        keys: (d_in, b).
        extension: Their extension of the system.
        lift: ``A`` times its column, of a single key beside a float64 root.
    """

    keys: Float[Tensor, "d_in b"]
    extension: Extension
    lift: Float[Tensor, "d_in b"] | None


class AssociativeMemory:
    """The state of one edited matrix under one rule; the caller owns it.

    Bytes held (``nbytes``), with ``d = d_in``, ``m`` kept directions, ``n`` keys since the last fold and ``c`` the
    smallest power of two >= ``n`` (0 for none): ``8 d m`` for ``A`` in float64, ``4 d m + 8 d r`` in float32 with the
    ``r <= m / 4`` strong directions of ``NullSpace``; ``8 (d + m) c`` for keys and low-rank term, in float64 ``8 d c``
    more for the lifts of its columns; ``8 (d + m + 2 b) b`` for the ``b`` keys solved last, of one in float64 ``8 d``
    more, until the memory changes. A rule whose projector is refreshed adds ``C0`` as it was given (``4 d^2`` in
    float32), and ``8 d^2`` for ``H`` once a key was folded.

    Args:
        moment: ``C0`` (d_in, d_in), mean of ``k k^T`` over ordinary text. Not copied: do not modify it.
        rule: The terms switched on.
        fold_after: How many written keys are kept as low-rank columns before they are folded into ``A``. Affects only
            the cost.
        basis_dtype: Type of ``A``. float32 halves its bytes and those read per edit. Under a rule with a null space
            and a ridge updates then agree with the formula to 1e-6, without them worse
            (docs/design/0008-solver-memory.md). torch's float32 matmul precision must be "highest", its default.
        spectrum: The spectrum of ``moment`` if known; otherwise computed, which is most of the cost of making a memory.

    Raises:
        ShapeError: ``moment`` is not square.
        ConfigError: ``basis_dtype`` is neither float64 nor float32.
        NumericalError: The system is not positive definite, or no direction lies under the threshold.
    """

    def __init__(
        self,
        moment: Float[Tensor, "d_in d_in"],
        rule: MemoryRule,
        *,
        fold_after: int = KEYS_PER_FOLD,
        basis_dtype: torch.dtype = torch.float64,
        spectrum: Spectrum | None = None,
    ) -> None:
        if moment.dim() != _MATRIX or moment.shape[0] != moment.shape[1]:
            raise ShapeError(
                f"a second moment must be square, not {tuple(moment.shape)}.", hint="Check the statistics file."
            )
        if basis_dtype not in (torch.float64, torch.float32):
            raise ConfigError(
                f"basis_dtype {basis_dtype} is not supported.", hint="Use torch.float64 or torch.float32."
            )
        self.rule = rule
        self.n_written = 0
        self.last_refresh = 0
        self.fold_after = fold_after
        self._moment = moment if rule.projector == "refreshed" else None
        self.root: InverseRoot
        self._history: Float[Tensor, "d_in d_in"] | None
        self._solved: _Solved | None
        self._keys: Columns
        self._system: GrowingSystem
        self._lifts: Columns | None
        space, energies = self._first_space(spectrum or Spectrum.of(moment))
        self._install(InverseRoot.of(space.basis, self._positive(energies), space.strong, basis_dtype), None)

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return self.root.matrix.shape[0]

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return self.root.matrix.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, ``C0`` included even where its owner shares it; the formula is above."""
        held: list[Tensor | None] = [self.root.matrix, self.root.strong, self._moment, self._history]
        held += [columns.buffer for columns in (self._keys, self._system.columns, self._lifts) if columns is not None]
        if self._solved is not None:
            keys, extension, lift = self._solved
            held += [keys, extension.columns, extension.gram, extension.factor, lift]
        return sum(tensor.untyped_storage().nbytes() for tensor in held if tensor is not None)

    def solve(
        self,
        keys: Float[Tensor, "d_in b"],
        residuals: Float[Tensor, "d_out b"],
        reached: Float[Tensor, "d_in b"] | None = None,
    ) -> Update:
        """The update that writes ``residuals`` at ``keys`` with the smallest leakage under the rule.

        Columns are facts; any float type in, float64 factors out. Nothing is remembered: see ``remember``. The equality
        form writes along ``keys`` and, given other keys in ``reached``, has the residuals hold at those (ROME does).
        Law: equals the formula of the rule's form (``MemoryRule``).
        Raises: ShapeError before any work; NumericalError when the system is not positive definite.
        Cost: two readings of ``A`` and two of the low-rank term, O(d_in m b + m n b) with m kept directions and n keys
        since the last fold; one reading of ``A`` for a key unlike those, in float64 by ``read_once``.
        """
        self._check(keys, residuals)
        solved = self._solved_for(self._cast(keys))
        right = self._lifted(solved, self._directions(solved.extension, reached))
        update = Update(residuals.to(right), right)
        if not update.is_finite():
            raise NumericalError("the update is not finite.", hint="Check the keys and residuals for overflow.")
        return update

    def remember(self, keys: Float[Tensor, "d_in b"]) -> None:
        """Add ``keys`` to the written ones; under a rule with history later updates protect them.

        Raises: as ``solve``; after any failure nothing is remembered.
        Cost: copying the new columns when these keys were solved just before, else half of a ``solve``; now and then a
        ``fold``.
        """
        with self.undone_by_failure():
            self.carry(keys)
            if self.fold_due():
                self.fold()

    def carry(self, keys: Float[Tensor, "d_in b"]) -> None:
        """``remember`` without the ``fold`` that may be due: the caller folds, and can undo the rest at no cost."""
        self.check_keys(keys)
        if self.rule.history:
            keys = self._cast(keys)
            solved = self._solved_for(keys)
            if self._lifts is not None:
                lift = self.root.lift(solved.extension.columns) if solved.lift is None else solved.lift
                self._lifts.append(lift)
            self._system.extend(solved.extension)
            self._keys.append(keys)
        self._solved = None
        self.n_written += keys.shape[1]

    def forget(self, keys: Float[Tensor, "d_in b"]) -> None:
        """Forget ``keys``: one column for each time they were remembered, with the same values.

        Law: the next update is that of a memory without these keys, unless a refresh came in between: then the
        projector stays until the next refresh. The count goes down, and
        ``last_refresh`` with it where it would exceed the count. Without history only the count changes.
        Of folded keys only the sum is known, so they cannot all be checked: a key never remembered is refused if it is
        not pending and none are folded, or if the history does not contain its energy.
        Where a key holds all but a millionth of the energy along some direction, digits are lost, with a warning
        (``InverseRoot.without_keys``).
        Raises: MethodError for keys that were not remembered, ShapeError; after any failure nothing is forgotten.
        Cost: O((d_in + n) m n) for keys since the last fold, O(d_in m g) for ``g`` folded ones, and under a rule with a
        ridge one eigendecomposition of the system for these.
        """
        self.check_keys(keys)
        if self.rule.history:
            keys = self._cast(keys)
            kept, folded = self._locate(keys)
            if folded.shape[1] > self.n_written - len(self._keys):
                raise not_remembered()
            self._install(self._without(folded), self._history_with(folded, -1), self._keys.matrix[:, kept])
        elif keys.shape[1] > self.n_written:
            raise not_remembered()
        self.n_written -= keys.shape[1]
        self.last_refresh = min(self.last_refresh, self.n_written)

    def recall(self, batches: Iterable[Float[Tensor, "d_in b"]]) -> None:
        """Load ``batches`` of keys as history into a new memory.

        Law: as ``refresh`` where due and ``remember`` for one batch after the other, up to rounding.
        Raises: as ``remember``.
        Cost: the last of the refreshes, and O(d_in m n) for ``n`` keys since then.
        """
        keys, refreshed = [], 0
        for batch in batches:
            if self.refresh_due():
                refreshed = self.last_refresh = self.n_written
            self.check_keys(batch)
            self.n_written += batch.shape[1]
            if self.rule.history:
                keys.append(self._cast(batch))
        written = torch.cat([self._keys.matrix, *keys], dim=1)
        count = self.n_written
        if refreshed:
            self.n_written = refreshed
            self._history = self._history_with(written[:, :refreshed])
            self.refresh()
            written = written[:, refreshed:]
        self.n_written = count
        n_folded = written.shape[1] // self.fold_after * self.fold_after
        folded, pending = written[:, :n_folded], written[:, n_folded:]
        self._install(self.root.with_keys(folded), self._history_with(folded), pending)

    def check_keys(self, keys: Tensor) -> None:
        """Raises: ShapeError, NumericalError when these cannot be keys of this memory."""
        if keys.dim() != _MATRIX or keys.shape[0] != self.d_in:
            raise ShapeError(f"keys are ({self.d_in}, b) columns, not {tuple(keys.shape)}.", hint="Check the layer.")
        if not bool(torch.isfinite(keys).all()):
            raise NumericalError("the keys are not finite.", hint="Check the model's activations for overflow.")

    def snapshot(self) -> dict[str, Any]:
        """The present state, for one ``restore``.

        No tensor is copied: tensors replaced by a fold or refresh stay in memory.
        """
        return {**vars(self), "_keys": copy(self._keys), "_lifts": copy(self._lifts), "_system": self._system.fork()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Back to ``snapshot``, bit for bit, after any failure."""
        vars(self).update(snapshot)

    @contextmanager
    def undone_by_failure(self) -> Iterator[None]:
        """A context that restores the memory, bit for bit, after an exception."""
        before = self.snapshot()
        try:
            yield
        except BaseException:
            self.restore(before)
            raise

    def fold_due(self) -> bool:
        """Whether enough keys are pending for a fold."""
        return len(self._keys) >= self.fold_after

    def fold(self) -> None:
        """Move the ``n`` pending keys into ``A``; later updates do not change. Cost: O(d_in m n)."""
        if len(self._keys) > 0:
            pending = self._keys.matrix
            self._install(self.root.with_keys(pending), self._history_with(pending))

    def refresh_due(self) -> bool:
        """Whether the rule asks for a new projector before the next edit."""
        due = self.n_written - self.last_refresh >= self.rule.refresh_every
        return self.rule.projector == "refreshed" and due

    def refresh(self) -> None:
        """A new projector from text and history (methods.md B.7), independent of ``refresh_every``.

        Under a rule whose projector is never refreshed this is a fold.
        """
        if self._moment is None:
            self.fold()
        else:
            self._reproject(self._moment)
        self.last_refresh = self.n_written

    def _first_space(self, spectrum: Spectrum) -> tuple[NullSpace, Float[Tensor, " m"]]:
        """The first null space and the energies of ``lambda1 C0`` along its basis: its eigenvectors diagonalize it."""
        rule = self.rule
        weight = rule.thresholded_weight if rule.projector == "refreshed" and rule.refresh_rule == "literal" else 1.0
        space = spectrum.scaled(weight).null_space(None if rule.projector == "none" else rule.threshold)
        return space, space.eigenvalues * (rule.leakage_weight / weight if weight > 0 else 0.0)

    def _reproject(self, moment: Float[Tensor, "d_in d_in"]) -> None:
        space = Spectrum.of(self._thresholded(moment)).null_space(self.rule.threshold)
        energies, rotation = torch.linalg.eigh(
            space.basis.T @ (self._protected(moment, self.rule.leakage_weight) @ space.basis)
        )
        dtype = self.root.matrix.dtype
        root = InverseRoot.of(space.basis @ rotation, self._positive(energies), space.strong, dtype)
        self._install(root, self._history_with(self._keys.matrix))

    def _thresholded(self, moment: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
        """The matrix whose small eigenvalues span the next null space."""
        weight = self.rule.thresholded_weight
        if self.rule.refresh_rule == "literal":
            return self._protected(moment, weight)
        if not self.rule.history or self.n_written == 0:
            return moment
        return self._protected(moment, weight, 1 / self.n_written).div_(weight + 1)

    def _protected(
        self, moment: Float[Tensor, "d_in d_in"], leakage_weight: float, weight: float = 1.0
    ) -> Float[Tensor, "d_in d_in"]:
        """``lambda1 C0 + weight H``, pending keys included."""
        protected = leakage_weight * moment.double()
        if self._history is not None:
            protected.add_(self._history, alpha=weight)
        return protected.addmm_(self._keys.matrix, self._keys.matrix.T, alpha=weight)

    def _without(self, keys: Float[Tensor, "d_in g"]) -> InverseRoot:
        """``A`` without ``keys`` that were folded. Raises: MethodError when the history lacks their energy."""
        if keys.shape[1] == 0:
            return self.root
        root = self.root.without_keys(keys)
        if self.rule.ridge > 0 and not root.has(keys, self.rule.ridge):
            raise not_remembered()
        return root

    def _history_with(self, keys: Float[Tensor, "d_in n"], times: int = 1) -> Float[Tensor, "d_in d_in"] | None:
        """``H`` plus ``times`` the moment of ``keys``; a new matrix, so that a failure leaves the old one."""
        if self._moment is None or keys.numel() == 0:
            return self._history
        history = keys.new_zeros(self.d_in, self.d_in) if self._history is None else self._history
        return history.addmm(keys, keys.T, alpha=times)

    def _positive(self, energies: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """``lambda2 + energies``, raised where rounding took it below zero."""
        diagonal = energies + self.rule.ridge
        largest = float(diagonal.max())
        floor = _RELATIVE_FLOOR * largest
        if largest <= 0 or bool((diagonal < -_RELATIVE_ROUNDING * largest).any()):
            raise NumericalError(
                "the memory's system is not positive definite.",
                hint="Use more tokens of statistics, or a rule with a ridge (lambda2 > 0).",
            )
        if (low := int((diagonal < floor).sum())) > 0:
            text = f"{low} eigenvalues were raised to {floor:.3g} to stay positive."
            warnings.warn(text, NumericalWarning, stacklevel=3)
        return diagonal.clamp(min=floor)

    def _install(
        self,
        root: InverseRoot,
        history: Float[Tensor, "d_in d_in"] | None,
        pending: Float[Tensor, "d_in n"] | None = None,
    ) -> None:
        """Set ``root``, ``history`` and the ``pending`` keys; after a failure nothing has changed."""
        d_in, m = root.matrix.shape
        keys, system = Columns(root.like, d_in), GrowingSystem(root.like, m)
        lifts = Columns(root.like, d_in) if root.matrix.dtype == torch.float64 else None
        if pending is not None and pending.shape[1] > 0:
            extension = system.extension(root.project(pending))
            if lifts is not None:
                lifts.append(root.lift(extension.columns))
            system.extend(extension)
            keys.append(pending)
        self.root, self._history, self._keys, self._system, self._lifts = root, history, keys, system, lifts
        self._solved = None

    def _directions(self, extension: Extension, reached: Float[Tensor, "d_in b"] | None) -> Float[Tensor, "m b"]:
        """What the residuals are multiplied with, in the coordinates of ``A``."""
        if self.rule.form == "ridge":
            return extension.solution
        if reached is not None:
            return extension.constrained(self.root.project(self._cast(reached)).T @ extension.unextended)
        gram = extension.gram
        slack = self.rule.slack if len(gram) > 1 else 0.0
        return extension.constrained(gram + slack * torch.eye(len(gram)).to(gram))

    def _solved_for(self, keys: Float[Tensor, "d_in b"]) -> _Solved:
        """The extension of the system by ``keys``; cached for the following ``remember``."""
        if self._solved is None or not torch.equal(self._solved.keys, keys):
            coordinates, image = self.root.read(keys)
            extension = self._system.extension(coordinates)
            self._solved = _Solved(keys.clone(), extension, self._lift_of_one(extension, coordinates, image))
        return self._solved

    def _lift_of_one(
        self, extension: Extension, coordinates: Float[Tensor, "m b"], image: Float[Tensor, "d_in b"] | None
    ) -> Float[Tensor, "d_in 1"] | None:
        """``A C`` of the column ``C`` that one key adds, beside a float64 root.

        With ``image``, ``A P`` of its coordinates ``P``, it is ``(A P - (A V) V^T P) / l``, and ``A`` is not read
        again. That is good to a few roundings of ``A P``; where most of it cancels, because the key is like a
        pending one, they would be many, and reach directions that ``A`` leaves alone.
        """
        if self._lifts is None or coordinates.shape[1] != 1:
            return None
        if image is None or float(extension.gram) < _LEFT_OF_A_NEW_KEY * float(coordinates.square().sum()):
            return self.root.lift(extension.columns)
        shares = self._system.columns.matrix.T @ coordinates
        return (image - self._lifts.matrix @ shares) / extension.factor

    def _lifted(self, solved: _Solved, directions: Float[Tensor, "m b"]) -> Float[Tensor, "d_in b"]:
        """``A X`` of the directions ``X`` solved for; those of one key are a multiple of the column it adds."""
        if solved.lift is None:
            return self.root.lift(directions)
        column = solved.extension.columns
        squares = column.square().sum().clamp(min=torch.finfo(column.dtype).tiny)
        return solved.lift * ((column * directions).sum() / squares)

    def _locate(self, keys: Float[Tensor, "d_in b"]) -> tuple[Bool[Tensor, " n"], Float[Tensor, "d_in g"]]:
        """A mask of the pending keys that stay without ``keys``, and those of ``keys`` that must have been folded."""
        pending = self._keys.matrix
        kept = torch.ones(pending.shape[1], dtype=torch.bool, device=pending.device)
        folded = []
        for key in keys.unbind(1):
            matches = (kept & (pending == key[:, None]).all(dim=0)).nonzero()
            if len(matches) > 0:
                kept[matches[0]] = False
            else:
                folded.append(key)
        return kept, torch.stack(folded, dim=1) if folded else keys[:, :0]

    def _cast(self, keys: Tensor) -> Float[Tensor, "d_in b"]:
        return keys.to(self.root.like)

    def _check(self, keys: Tensor, residuals: Tensor) -> None:
        self.check_keys(keys)
        if residuals.dim() != _MATRIX or keys.shape[1] != residuals.shape[1]:
            raise ShapeError(
                f"{keys.shape[1]} keys but {residuals.shape[-1]} residuals.", hint="Give one column of each per fact."
            )
