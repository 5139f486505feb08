"""Where a workspace is: a folder that is named, or the one that the current folder lies in."""

from __future__ import annotations

from pathlib import Path

from betaedit.errors import LedgerError

LEDGER = "ledger.sqlite"


def current_workspace(start: Path | None = None) -> Path | None:
    """The workspace that ``start`` (the current folder) lies in, if any."""
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / LEDGER).is_file()), None)


def find_workspace(folder: Path | None) -> Path:
    """The workspace ``folder``, or the current one.

    Raises:
        LedgerError: There is none.
    """
    if folder is not None:
        if not (folder / LEDGER).is_file():
            raise LedgerError(f"there is no workspace in {folder}.", mend=f"Make one: betaedit init {folder}.")
        return folder
    found = current_workspace()
    if found is None:
        raise LedgerError(
            "the current folder lies in no workspace.",
            mend="Name one with --workspace DIR, or make one: betaedit init DIR.",
        )
    return found
