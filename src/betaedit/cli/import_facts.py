"""``betaedit import``: the facts of another workspace, written into this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from betaedit.cli import options


def import_facts(
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="The workspace whose live facts are imported.")],
    workspace: options.WorkspaceOption = None,
    batch_size: options.BatchSizeOption = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be written; change nothing.")] = False,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Write the live facts of another workspace into this one; model and method may differ.

    Their values are searched again, because a value depends on the weights. Facts that this workspace already holds are
    skipped, so the same command continues an interrupted import.
    """
    from betaedit.cli.edit_workspace import edit_workspace
    from betaedit.ledger.place import find_workspace
    from betaedit.ledger.query import live_cases

    place, cases = find_workspace(workspace), live_cases(other)
    edit_workspace(place, cases, other, batch_size=batch_size, plan=plan, save=None, device=device, json_=json_)
