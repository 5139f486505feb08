"""``betaedit keys``: how far the keys of written facts have moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from betaedit.experiments.moved_keys import MovedKeys


def keys(
    run: Annotated[Path, typer.Argument(help="A run folder or a workspace.")],
    statistics: options.StatisticsOption = None,
    json_: options.JsonOption = False,
    device: options.DeviceOption = None,
) -> None:
    """Show how far the keys of a run's facts have moved since they were written, by layer and age.

    A method protects the keys it wrote. Later facts, written into lower layers, move the keys that earlier facts have
    in the layers above: what is protected there is a key that no longer occurs.
    """
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.experiments.moved_keys import measure_moved_keys
    from betaedit.experiments.target import editor_of

    options.quiet_libraries()
    console = Console(stderr=json_)
    editor = editor_of(str(run), statistics=statistics, device=device)
    found = measure_moved_keys(editor, Bars(console))
    if json_:
        options.print_json({"run": str(run), "facts": len(found[0].held), "layers": [each.to_dict() for each in found]})
        return
    console.print(_table(found))


def _table(found: Sequence[MovedKeys]) -> Table:
    from betaedit.cli.render import short_columns

    parts = len(found[0].by_age())
    ages = ["oldest", *(f"part {part}" for part in range(2, parts)), "newest"] if parts > 1 else ["all"]
    table = short_columns("layer", *ages, "smallest cosine", "held", "missed")
    table.title = f"distance of present keys from stored ones, {len(found[0].held)} facts"
    table.caption = "relative to the key's length; held, missed: mean over the facts the model gives and does not give"
    for each in found:
        plain = each.to_dict()
        of_status = ("-" if plain[name] is None else f"{plain[name]:.3f}" for name in ("held", "missed"))
        by_age = (f"{distance:.3f}" for distance in plain["by_age"])
        table.add_row(str(each.layer), *by_age, f"{plain['smallest_cosine']:.3f}", *of_status)
    return table
