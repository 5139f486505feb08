"""``betaedit compare``: several methods, or settings of them, on the same facts, in one table."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betaedit.cli import options
from betaedit.cli.exit_codes import exit_code
from betaedit.errors import BetaEditError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from betaedit.experiments.folder import RunFolder
    from betaedit.experiments.run import RunReport


def compare(
    source: options.FactsOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs; the same command continues them.")],
    methods: Annotated[
        str,
        typer.Option(
            "--methods", help="Method names separated by commas, settings in brackets: 'memit,betaedit[ridge=3]'."
        ),
    ] = "memit,memit-h,alphaedit,betaedit",
    model: options.ModelOption = "smollm2",
    limit: options.LimitOption = None,
    skip_invalid: options.SkipInvalidOption = False,
    batch_size: options.BatchSizeOption = 1,
    reset_every: options.ResetEveryOption = None,
    evaluate_at: options.EvaluateAtOption = "",
    text: options.TextOption = None,
    also: options.AlsoOption = "",
    tasks: options.TasksOption = None,
    n_tests: options.TestsOption = 100,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Show every fact and every comparison, not only those in which methods differ."),
    ] = False,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
) -> None:
    """Run several methods on the same facts, each from the unedited model; `betaedit report` draws the runs."""
    from rich.console import Console

    from betaedit.cli.render import say
    from betaedit.experiments.variants import check_variants
    from betaedit.facts.readers import read_cases
    from betaedit.facts.sources import source_name

    variants = options.variants(methods)
    if not variants:
        raise ConfigError("there is no method to compare.", hint="Write --methods memit,betaedit.")
    variants, values = options.choose_for(variants, config, set_, seed)
    check_variants(variants, preset, values)
    measures = options.measures(text, also, tasks, n_tests, None, None)
    counts = options.numbers("--evaluate-at", evaluate_at)
    facts = read_cases(source, limit=limit, skip_invalid=skip_invalid)
    options.say_skipped(facts.rejected)
    cases = list(facts.cases)
    from betaedit.cli.render import Bars
    from betaedit.experiments.compare import compare_methods
    from betaedit.experiments.groups import check_group_size
    from betaedit.experiments.run import measuring_points
    from betaedit.models.load import load_language_model

    check_group_size(reset_every, batch_size)
    measuring_points(counts, len(cases), reset_every or batch_size)
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
        reset_every=reset_every,
        evaluate_at=counts,
        measures=measures,
        source=source_name(source),
        on_collapse="ignore",
    )
    if json_:
        options.print_json(_plain(found, out))
    else:
        for table in (_facts_table(found), _model_table(found), *_further_tables(found, console.width)):
            console.print(table)
        for name, report in found.items():
            if isinstance(report, BetaEditError):
                say(console, f"{name} failed: {report.message}", "red")
        _show_side_by_side(console, _folders(found, out), all_)
        console.print(f"draw them with: betaedit report {' '.join(str(out / name) for name in found)}")
    for report in found.values():
        if isinstance(report, BetaEditError):
            raise typer.Exit(exit_code(report))


def _folders(found: dict[str, RunReport | BetaEditError], out: Path) -> dict[str, RunFolder]:
    """The runs of the methods that did not fail."""
    from betaedit.experiments.folder import RunFolder

    return {name: RunFolder(out / name) for name, report in found.items() if not isinstance(report, BetaEditError)}


def _plain(found: dict[str, RunReport | BetaEditError], out: Path) -> dict[str, Any]:
    """Every method's report with its comparisons and the facts it holds, as ``--json`` prints it."""
    from betaedit.experiments.side_by_side import compare_runs, facts_by_run

    folders = _folders(found, out)
    comparisons, (edits, facts) = compare_runs(folders), facts_by_run(folders)
    return {
        name: {"error": str(report)}
        if isinstance(report, BetaEditError)
        else {
            **report.to_dict(),
            "comparisons": [each.to_dict() for each in comparisons if name in (each.first, each.second)],
            "facts_held": {
                "edits": edits,
                "facts": [
                    {"record": fact.record, "prompt": fact.prompt, "wanted": fact.wanted, "held": fact.held[name],
                     "corrected": fact.corrected}
                    for fact in facts
                ],
            },
        }
        for name, report in found.items()
    }  # fmt: skip


def _show_side_by_side(console: Console, runs: dict[str, RunFolder], all_: bool) -> None:
    """Print which facts each method holds, and which differences are significant."""
    from rich.text import Text

    from betaedit.cli.render import comparison_lines, held_table
    from betaedit.experiments.side_by_side import compare_runs, facts_by_run

    edits, facts = facts_by_run(runs)
    if facts:
        # A pager only at a terminal.
        paged = all_ and console.is_terminal and len(facts) > console.height
        with console.pager(styles=True) if paged else nullcontext():
            console.print(held_table(facts, edits, all_))
    for line in comparison_lines(compare_runs(runs), all_):
        console.print(Text(line))


def _facts_table(found: dict[str, RunReport | BetaEditError]) -> Table:
    """The figures of the facts and their neighbors."""
    from betaedit.cli.render import both_forms, corrected_facts, short_columns
    from betaedit.experiments.record import METRICS
    from betaedit.experiments.verdict import judge

    table = short_columns("method", "edits", *METRICS, "kept", "verdict")
    table.caption = "efficacy, generality, specificity: probability / argmax; kept: neighbors whose answer is unchanged"
    for name, report in found.items():
        if isinstance(report, BetaEditError):
            continue
        for point in report.checkpoints:
            kept = point.neighbors_kept
            table.add_row(
                name,
                str(point.edits),
                *(both_forms(getattr(point, metric)) for metric in METRICS),
                "-" if kept is None else f"{kept.mean:.1%}",
                judge([report.before, point]).level,
            )
        table.add_section()
    if corrected := max((r.after.corrected for r in found.values() if not isinstance(r, BetaEditError)), default=0):
        table.caption += f"\n{corrected_facts(corrected)}"
    return table


def _model_table(found: dict[str, RunReport | BetaEditError]) -> Table:
    """The drift of the model."""
    from betaedit.cli.render import groups_note, short_columns
    from betaedit.experiments.record import mean_known

    table = short_columns("method", "edits", "perplexity", "agreement", "leakage", "weight change")
    table.caption = "leakage (on held-out text) and weight change: relative, mean over layers"
    notes = [
        note for report in found.values() if not isinstance(report, BetaEditError) and (note := groups_note(report))
    ]
    table.caption = "\n".join([table.caption, *dict.fromkeys(notes)])
    for name, report in found.items():
        if isinstance(report, BetaEditError):
            continue
        for point in report.checkpoints:
            states = list(point.layers.values())
            leaked = mean_known([state.relative_leakage for state in states])
            changed = mean_known([state.relative_weight_change for state in states])
            table.add_row(
                name,
                str(point.edits),
                f"{point.perplexity:.2f}",
                f"{point.agreement:.1%}",
                *("-" if share is None else f"{share:.1%}" for share in (leaked, changed)),
            )
        table.add_section()
    return table


def _further_tables(found: dict[str, RunReport | BetaEditError], width: int) -> list[Table | Text]:
    """One table per group of further figures, each behind a line on what they are; see ``render.further_tables``."""
    from betaedit.cli.render import further_tables
    from betaedit.experiments.tables import figure_tables

    runs = {name: report.checkpoints for name, report in found.items() if not isinstance(report, BetaEditError)}
    return [table for figures in figure_tables(runs) for table in further_tables(figures, width)]
