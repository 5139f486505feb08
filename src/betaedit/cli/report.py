"""``betaedit report``: one page about measured runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from betaedit.cli import options


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    json_: options.JsonOption = False,
) -> None:
    """Write one HTML file about one or several runs: verdict, curves, worst prompts, settings.

    The file works without a network and without other files.
    """
    from rich.console import Console
    from rich.markup import escape

    from betaedit.cli.render import comparison_lines
    from betaedit.experiments.folder import RunFolder, write_text
    from betaedit.experiments.side_by_side import compare_runs
    from betaedit.reports.charts import name_folders
    from betaedit.reports.page import render_report, side_by_side, verdicts

    folders = [RunFolder(path) for path in runs]
    write_text(out, render_report(folders, title))
    found = verdicts(folders)
    if json_:
        options.print_json({"path": str(out), "runs": found, **side_by_side(folders)})
        return
    console = Console(highlight=False, soft_wrap=True)
    for verdict in found:
        console.print(f"[bold]{escape(verdict['run'])}[/]: {verdict['level']}. {escape(verdict['judgement'])}")
        console.print(f"  {escape(verdict['summary'])}")
    for line in comparison_lines(compare_runs(name_folders(folders)), all_=False):
        console.print(escape(line))
    console.print(f"written to {escape(str(out))}")
