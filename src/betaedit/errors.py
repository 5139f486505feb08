"""The errors of this package, in one tree.

    BetaEditError
    ├── FactError            a fact or a file of facts cannot be used (slot, subject, target, duplicate)
    │   └── UnchangedError           the new target is already a known answer
    ├── ModelError           a model cannot be loaded, read or edited
    │   ├── ModelNotFoundError       nothing under that name
    │   ├── AnatomyError             layers, projection, norm or head not found
    │   ├── UnsupportedMatrixError   quantized or mixture-of-experts projection
    │   ├── LookupTokenError         the subject's token cannot be located
    │   └── WeightsChangedError      the model's weights are not those that its editor wrote
    ├── ShapeError           tensors that do not fit together
    ├── StatisticsError      moments that are missing, too small, or of another model
    ├── NumericalError       a system that is not positive definite, or a non-finite result
    ├── MethodError          an unknown method, or one that lacks a capability
    ├── ConfigError          a hyper-parameter that does not exist or has an impossible value
    ├── CollapseError        a run that stops because the model collapsed
    ├── NotHeldError         fewer facts are held than required
    ├── RunFolderError       a folder without a run, or with a broken or newer one
    ├── LedgerError          a workspace that is missing, damaged, in use, or cannot be written
    │   └── IdentityError            a workspace of another model, other statistics, or another method
    ├── OutputError          a file or folder of results that cannot be written
    ├── JudgeError           a judge of answers that cannot be reached, or that gives no verdict
    └── MissingExtraError    an optional library that is not installed

Each error says what is wrong and, in ``hint``, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class BetaEditError(Exception):
    """Root of all errors of this package; ``hint`` is one sentence on what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class FactError(BetaEditError):
    """A fact cannot be used; names the field, and the file and line when it came from one."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        field: str | None = None,
        path: Path | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.path = path
        self.line = line

    def at(self, path: Path, line: int) -> FactError:
        """The same error, located in a file (lines count from 1)."""
        return type(self)(self.message, hint=self.hint, field=self.field, path=path, line=line)

    def within(self, field: str) -> FactError:
        """The same error, inside the named field."""
        inner = field if self.field is None else f"{field}.{self.field}"
        return type(self)(self.message, hint=self.hint, field=inner, path=self.path, line=self.line)

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        place = "" if self.path is None else f"{self.path}{line}: "
        field = "" if self.field is None else f"[{self.field}] "
        return f"{place}{field}{super().__str__()}"


class UnchangedError(FactError):
    """The new target of a fact is already its known answer."""


class ModelError(BetaEditError):
    """A model cannot be loaded, read or edited."""


class ModelNotFoundError(ModelError):
    """Nothing is found under the given model name or path."""


class AnatomyError(ModelError):
    """The decoder layers, an MLP output projection, the final norm or the head are not found."""


class UnsupportedMatrixError(ModelError):
    """The MLP output projection is quantized or belongs to a mixture of experts."""


class LookupTokenError(ModelError):
    """The last token of the subject cannot be located in the tokenized prompt."""


class WeightsChangedError(ModelError):
    """The model's weights are not those that its editor wrote: other code changed or replaced them."""


class ShapeError(BetaEditError):
    """Tensors do not fit together."""


class StatisticsError(BetaEditError):
    """Second moments are missing, too small, broken, or belong to another model."""


class NumericalError(BetaEditError):
    """A system is not positive definite or a result is not finite."""


class MethodError(BetaEditError):
    """The method is unknown or lacks a capability."""


class ConfigError(BetaEditError):
    """A hyper-parameter does not exist or has an impossible value."""


class CollapseError(BetaEditError):
    """The edited model has collapsed, and the run stops."""


class NotHeldError(BetaEditError):
    """The edited model holds fewer facts than required."""


class RunFolderError(BetaEditError):
    """A run folder is missing, broken, or written by a newer version."""


class LedgerError(BetaEditError):
    """A workspace is missing, damaged, in use, or cannot be written."""


class IdentityError(LedgerError):
    """A workspace belongs to another model, other statistics, or another method."""


class OutputError(BetaEditError):
    """A file or folder of results cannot be written."""


class JudgeError(BetaEditError):
    """A judge of answers cannot be reached, or gives no verdict."""


class MissingExtraError(BetaEditError):
    """A required optional library is not installed."""


class NumericalWarning(UserWarning):
    """A computation was stabilized (jitter, clamped eigenvalues); the result is usable but less exact."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str, *, n: int = 1) -> str:
    """A hint for an unknown name: the ``n`` nearest names, or ``otherwise`` if none is near."""
    near = difflib.get_close_matches(name, known, n=n)
    return f"Did you mean {' or '.join(near)}?" if near else otherwise
