"""The exit code of each kind of error."""

from __future__ import annotations

from betaedit.errors import (
    BetaEditError,
    CollapseError,
    ConfigError,
    FactError,
    LedgerError,
    MethodError,
    ModelError,
    NotHeldError,
    NumericalError,
    RunFolderError,
    StatisticsError,
)

EXIT_CODES: tuple[tuple[type[BetaEditError], int], ...] = (
    (ConfigError, 2),
    (MethodError, 2),
    (FactError, 3),
    (ModelError, 4),
    (StatisticsError, 5),
    (NumericalError, 6),
    (RunFolderError, 7),
    (CollapseError, 8),
    (LedgerError, 9),
    (NotHeldError, 10),
    (BetaEditError, 1),
)


def exit_code(error: BetaEditError) -> int:
    """The stable exit code of a kind of error (docs/file-formats.md)."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
