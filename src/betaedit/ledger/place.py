"""Where a workspace is: a folder that is named, or the one that the current folder lies in."""

from __future__ import annotations

from pathlib import Path

from betaedit.errors import LedgerError

LEDGER = "ledger.sqlite"
MODEL_PLACE = "model.txt"
"""Where the model is, once it is no longer where the workspace was made with it."""


def current_workspace(start: Path | None = None) -> Path | None:
    """The workspace that ``start`` (the current folder) lies in, if any."""
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / LEDGER).is_file()), None)


def model_place(folder: Path, first: str) -> str:
    """Where the model of the workspace ``folder`` is; ``first`` is where it was at first."""
    file = folder / MODEL_PLACE
    return file.read_text(encoding="utf-8").strip() if file.is_file() else first


def find_workspace(folder: Path | None) -> Path:
    """The workspace ``folder``, or the current one.

    Raises:
        LedgerError: There is none.
    """
    if folder is not None:
        if not (folder / LEDGER).is_file():
            raise LedgerError(f"there is no workspace in {folder}.", hint=f"Make one: betaedit init {folder}.")
        return folder
    found = current_workspace()
    if found is None:
        raise LedgerError(
            "the current folder lies in no workspace.",
            hint="Name one with --workspace DIR, or make one: betaedit init DIR.",
        )
    return found
