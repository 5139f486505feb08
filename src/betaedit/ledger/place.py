"""Finds a workspace: the named folder, or the one that contains the current folder."""

from __future__ import annotations

from pathlib import Path

from betaedit.errors import LedgerError

LEDGER = "ledger.sqlite"
MODEL_PLACE = "model.txt"
"""File with the place of the model, if it has moved since the workspace was made."""


def current_workspace(start: Path | None = None) -> Path | None:
    """The workspace that contains ``start`` (default: the current folder), if any."""
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / LEDGER).is_file()), None)


def model_place(folder: Path, first: str) -> str:
    """The place of the model of the workspace ``folder``; ``first`` is its original place."""
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
            "the current folder is not in a workspace.",
            hint="Name one with --workspace DIR, or make one: betaedit init DIR.",
        )
    return found
