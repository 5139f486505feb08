"""``betaedit align``: how far a sequence of edits is from its one-time solution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from betaedit.experiments.align import LayerAlignment

_COLUMNS = ("written", "with_history", "without_history", "one_time_change")


def align(
    source: Annotated[Path, typer.Option("--from", help="The facts.")],
    method: options.ChosenMethodOption = None,
    model: options.ModelOption = "smollm2",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N facts of the file.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Facts solved together.")] = 1,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    statistics: options.StatisticsOption = None,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    device_map: options.DeviceMapOption = None,
) -> None:
    """Write facts in sequence, and measure how far the weights are from writing all of them at once.

    Both use the keys and values of the sequence. 0% means the same weights; distances are relative to the norm of the
    one-time solution's change. The same batches are also solved with and without history, whatever the method does.
    """
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.facts.readers import read_cases

    console = Console(stderr=json_)
    chosen_method, values = options.choose(method, config, set_, seed)
    cases = read_cases(source, limit=limit).cases
    editor = options.load_editor(
        model,
        chosen_method,
        dtype=dtype,
        device=device,
        device_map=device_map,
        values=values,
        statistics=statistics,
        preset=preset,
        progress=Bars(console),
    )
    editor.edit(cases, batch_size=batch_size)
    from betaedit.experiments.align import measure_alignment

    layers = measure_alignment(editor)
    title = f"{len(editor.results)} facts · {editor.method.name} · {editor.language_model.name}"
    if json_:
        means = {name: sum(getattr(layer, name) for layer in layers) / len(layers) for name in _COLUMNS}
        options.print_json(
            {
                "model": editor.language_model.name,
                "method": editor.method.name,
                "edits": len(editor.results),
                "batch_size": batch_size,
                "mean": means,
                "layers": [layer.to_dict() for layer in layers],
                "config": editor.config.model_dump(mode="json"),
            }
        )
        return
    console.print(_table(title, layers))


def _table(title: str, layers: tuple[LayerAlignment, ...]) -> Table:
    from rich.table import Table

    table = Table(title=title, caption="distance from the one-time solution, relative to the norm of its change")
    for name in ("layer", "as written", "with history", "without history", "one-time change"):
        table.add_column(name, justify="right")
    for layer in layers:
        table.add_row(str(layer.layer), *(f"{getattr(layer, name):.3%}" for name in _COLUMNS))
    return table
