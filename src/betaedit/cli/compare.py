"""``betaedit compare``: several methods, or settings of them, on the same facts, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options
from betaedit.cli.exit_codes import exit_code
from betaedit.errors import BetaEditError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from betaedit.experiments.run import RunReport


def compare(
    source: options.FactsOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs; the same command continues them.")],
    methods: Annotated[
        str, typer.Option("--methods", help="Names with commas, settings in brackets: 'memit,betaedit[ridge=3]'.")
    ] = "memit,memit-h,alphaedit,betaedit",
    model: options.ModelOption = "smollm2",
    limit: options.LimitOption = None,
    batch_size: options.BatchSizeOption = 1,
    evaluate_at: options.EvaluateAtOption = "",
    text: options.TextOption = None,
    also: options.AlsoOption = "",
    tasks: options.TasksOption = None,
    n_tests: options.TestsOption = 100,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
) -> None:
    """Run several methods on the same facts, each from the unedited model; `betaedit report` draws the runs."""
    from rich.console import Console

    from betaedit.experiments.variants import check_variants
    from betaedit.facts.readers import read_cases
    from betaedit.facts.sources import source_name

    variants = options.variants(methods)
    if not variants:
        raise ConfigError("there is no method to compare.", mend="Write --methods memit,betaedit.")
    values = options.overrides(config, set_, seed)
    check_variants(variants, preset, values)
    measures = options.measures(text, also, tasks, n_tests, None, None)
    counts = options.numbers("--evaluate-at", evaluate_at)
    cases = list(read_cases(source, limit=limit).cases)
    from betaedit.cli.render import Bars
    from betaedit.experiments.compare import compare_methods
    from betaedit.experiments.run import measuring_points
    from betaedit.models.load import load_language_model

    measuring_points(counts, len(cases), batch_size)
    console = Console(stderr=json_)
    options.quiet_libraries()
    found = compare_methods(
        load_language_model(model, dtype=dtype, device=device),
        variants,
        cases,
        out,
        preset=preset,
        overrides=values,
        progress=Bars(console),
        on_method=lambda name: console.print(f"[bold]{name}[/]"),
        batch_size=batch_size,
        evaluate_at=counts,
        measures=measures,
        source=source_name(source),
        on_collapse="ignore",
    )
    if json_:
        options.print_json(
            {
                name: {"error": str(report)} if isinstance(report, BetaEditError) else report.to_dict()
                for name, report in found.items()
            }
        )
    else:
        console.print(_table(found))
        console.print(f"draw them with: betaedit report {' '.join(str(out / name) for name in found)}")
    for report in found.values():
        if isinstance(report, BetaEditError):
            raise typer.Exit(exit_code(report))


def _table(found: dict[str, RunReport | BetaEditError]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    from betaedit.cli.render import both_forms
    from betaedit.experiments.record import METRICS, mean_known
    from betaedit.experiments.verdict import judge

    # Ten columns in a terminal of 80 characters: what does not fit goes on below, and no name is cut off.
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("method", "edits", *METRICS, "leakage", "weight change", "perplexity", "agreement", "verdict"):
        table.add_column(name, overflow="fold")
    table.caption = (
        "efficacy, generality, specificity: probability / argmax; leakage (on held-out text) and weight change: "
        "relative, mean"
    )
    for name, report in found.items():
        if isinstance(report, BetaEditError):
            table.add_row(name, "-", f"[red]{report.message}[/]")
            continue
        for point in report.checkpoints:
            states = list(point.layers.values())
            table.add_row(
                name,
                str(point.edits),
                *(both_forms(getattr(point, metric)) for metric in METRICS),
                "-" if (leaked := mean_known([s.relative_leakage for s in states])) is None else f"{leaked:.1%}",
                f"{sum(state.relative_weight_change for state in states) / len(states):.1%}",
                f"{point.perplexity:.2f}",
                f"{point.agreement:.1%}",
                judge([report.before, point]).level,
            )
        table.add_section()
    return table
