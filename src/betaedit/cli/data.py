"""``betaedit data``: checks of files of facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from betaedit.facts.check import Check

data = typer.Typer(name="data", help="Check files of facts.", no_args_is_help=True)

_SHOWN = 10


@data.command()
def check(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A file of facts, - for a pipe, or dataset:OWNER/NAME[:SPLIT].")
    ],
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use only the first N records of the file.")
    ] = None,
    zsre_target: options.ZsreTargetOption = "alt",
    json_: options.JsonOption = False,
) -> None:
    """Count what a file of facts holds: facts, prompts, repeats, conflicts, and records that cannot be used.

    Exits with code 1 if a record cannot be used. No model is loaded.
    """
    from rich.console import Console

    from betaedit.facts.check import check_facts

    found = check_facts(source, limit=limit, zsre_target=zsre_target)
    if json_:
        options.print_json(found.to_dict())
    else:
        _show(found, Console(highlight=False, soft_wrap=True))
    if found.n_rejected:
        raise typer.Exit(1)


def _show(found: Check, console: Console) -> None:
    console.print(_figures(found))
    _list(console, "conflicting facts", found.n_conflicts, [
        f"{one.prompt.replace('{}', f'[{one.subject}]')} in lines {', '.join(map(str, one.lines))}"
        for one in found.conflicts
    ])  # fmt: skip
    _list(console, "duplicate facts", found.n_duplicates, [
        f"line {one.line} as line {one.first_line}: {one.prompt.replace('{}', f'[{one.subject}]')} {one.target_new}"
        for one in found.duplicates
    ])  # fmt: skip
    _list(console, "rejected records", found.n_rejected, [
        f"{found.path}:{one.line}: {'' if one.field is None else f'[{one.field}] '}{one.reason} {one.hint}".rstrip()
        for one in found.rejected
    ])  # fmt: skip


def _figures(found: Check) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = {
        "format": found.format or "none",
        "records": found.records,
        "facts": found.facts,
        **found.prompts,
        "true answer not known": found.n_true_unknown,
        "subjects": found.subjects,
        "repeated subjects": f"{found.repeated_subjects}, of {found.facts_of_repeated_subjects} facts",
        "most repeated": ", ".join(f"{name} {number}" for name, number in found.worst_subjects) or "none",
        "duplicate facts": found.n_duplicates,
        "conflicting facts": found.n_conflicts,
        "new target known already": found.n_unchanged,
        "rejected records": found.n_rejected,
    }
    table = Table("what", "number", title=Text(str(found.path)))
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    return table


def _list(console: Console, title: str, number: int, lines: list[str]) -> None:
    if not number:
        return
    console.print(f"{title}:", style="bold")
    for line in lines[:_SHOWN]:
        console.print(f"  {line}", markup=False)
    if number > _SHOWN:
        console.print(f"  and {number - _SHOWN} more (--json lists them)")
