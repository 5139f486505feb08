"""``betaedit statistics``: second moments of the keys: collect, show and save them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from betaedit.editors.closed_form.editor import ClosedForm
    from betaedit.progress import Progress


def statistics(
    model: options.ModelOption = "smollm2",
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus", help="self (text sampled from the model), a text or JSONL file, or dataset:owner/name."
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Number of tokens to collect.")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers, e.g. 4,5,6,7,8; default: those of the preset.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--from", help="Show this file of statistics instead of collecting.")
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option("--norm-anchor", help="Measure value_norm_anchor on these facts.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of facts for --norm-anchor.")] = 1000,
    save: Annotated[Path | None, typer.Option("--save", help="Save the matrices to this safetensors file.")] = None,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    device_map: options.DeviceMapOption = None,
) -> None:
    """Collect second moments of the keys at the edited layers, and show their null space.

    One pass over the text serves all layers. Results are cached; an interrupted run continues.
    """
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.editors.closed_form.editor import closed_form

    values = options.overrides(config, set_, seed)
    chosen = None if layers is None else options.numbers("--layers", layers.strip("[] "))
    if file is not None and (corpus is not None or tokens is not None):
        raise ConfigError("--from cannot be combined with --corpus and --tokens.", hint="Leave out one of them.")
    given = {"statistics_corpus": corpus, "statistics_tokens": tokens, "layers": chosen}
    values = {**values, **{key: value for key, value in given.items() if value is not None}}
    console = Console(stderr=json_)
    editor = options.load_editor(
        model,
        "betaedit",
        dtype=dtype,
        device=device,
        device_map=device_map,
        preset=preset,
        values=values,
        statistics=file,
        progress=Bars(console),
    )
    editing = closed_form(editor)
    found = spectrum(editing, editor.progress)
    if anchor is not None:
        found["norm_anchor"] = _norm_anchor(editing, anchor, limit)
    if save is not None:
        editing.statistics.save(save)
    if json_:
        options.print_json(found)
        return
    console.print(_table(found))
    if anchor is not None:
        console.print(f"length of values: --set value_norm_anchor={found['norm_anchor']:.4g}")
    if save is not None:
        console.print(f"saved to {save}")


def spectrum(editing: ClosedForm, progress: Progress) -> dict[str, Any]:
    """Per layer: trace, share of the largest eigenvalue, and the null space below the threshold."""
    from betaedit.editors.closed_form.spectra import spectra

    threshold = editing.config.nullspace_threshold
    moments = editing.statistics
    rows = []
    chosen = {layer: moments.matrices[layer] for layer in editing.config.layers}
    for layer, found in spectra(chosen, progress):
        eigenvalues = found.values
        kept = eigenvalues < threshold
        trace = float(eigenvalues.sum())
        rows.append(
            {
                "layer": layer,
                "width": len(kept),
                "trace": trace,
                "largest_share": float(eigenvalues[-1]) / trace,
                "null_directions": int(kept.sum()),
                "null_share": float(kept.double().mean()),
                "null_energy": float(eigenvalues[kept].sum()) / trace,
            }
        )
    return {**moments.to_dict(), "threshold": threshold, "spectrum": rows}


def _norm_anchor(editing: ClosedForm, facts: Path, limit: int) -> float:
    from betaedit.editors.closed_form.anchor import measure_norm_anchor
    from betaedit.facts.readers import read_cases

    cases = read_cases(facts, limit=limit).cases
    return measure_norm_anchor(editing.model, [case.fact for case in cases], editing.config)


def _table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    from betaedit.statistics.origin import statistics_label

    table = Table(title=statistics_label(found))
    for name in ("layer", "width", "trace", "largest direction", f"below {found['threshold']:g}", "their energy"):
        table.add_column(name, justify="right")
    for row in found["spectrum"]:
        table.add_row(
            str(row["layer"]),
            str(row["width"]),
            f"{row['trace']:.2f}",
            f"{row['largest_share']:.1%}",
            f"{row['null_directions']} ({row['null_share']:.0%})",
            f"{row['null_energy']:.1%}",
        )
    return table
