"""``betaedit calibrate``: settings for a model that has no preset."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from betaedit.experiments.calibrate import Calibration
    from betaedit.experiments.record import EditFigure

_BAR = 40
_SETTINGS = {
    "layers": "layer",
    "value_learning_rate": "rate",
    "value_clamp": "clamp",
    "leakage_weight": "leak",
    "ridge": "ridge",
    "nullspace_threshold": "null",
}
_PLOTS = (".png", ".svg", ".pdf")


def calibrate(
    model: options.ModelOption = "smollm2",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The preset file to write; its trials are stored beside it, and the same command continues them.",
        ),
    ] = Path("preset.yaml"),
    source: Annotated[
        Path | None, typer.Option("--from", help="Facts to calibrate on; default: those of the demo.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of facts that every trial writes.")] = 8,
    check: Annotated[
        int, typer.Option("--check", min=0, help="Number of further facts written with the best setting at the end.")
    ] = 20,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Maximum number of settings to try.")] = 12,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0, help="Total time limit in minutes, check included.")
    ] = 18,
    method: options.MethodOption = "betaedit",
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw layers and trials: a .png, .svg or .pdf.")] = None,
    seed: options.SeedOption = None,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
) -> None:
    """Find layers, learning rate, clamp, threshold and strengths for a model, and write them as a preset file.

    Causal tracing proposes the layers; then settings are tried one by one on a few facts. The same command continues
    an interrupted calibration.
    """
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.experiments.calibrate import calibrate as run
    from betaedit.experiments.folder import write_text
    from betaedit.facts.readers import demo_path, read_cases
    from betaedit.facts.sources import source_name
    from betaedit.models.load import load_language_model

    _check_plot(plot)
    cases = list(read_cases(source or demo_path(), limit=limit + check).cases)
    console = Console(stderr=json_)
    options.quiet_libraries()
    found = run(
        load_language_model(model, dtype=dtype, device=device),
        cases[:limit],
        check=cases[limit:],
        method=method,
        n_trials=trials,
        minutes=minutes,
        seed=seed or 0,
        journal=out.with_suffix(".trials.jsonl"),
        source=None if source is None else source_name(source),
        progress=Bars(console),
        on_trial=lambda trial, score: console.print(
            f"trial {trial.number}: score {_plain(score)}, {trial.seconds:.0f} s"
        ),
    )
    preset = found.preset_file(out.stem)
    write_text(out, preset.to_yaml())
    if plot is not None:
        from betaedit.reports.calibration import plot_calibration

        plot_calibration(found, plot)
    if json_:
        options.print_json({**found.to_dict(), "path": str(out), "preset": preset.model_dump(mode="json")})
        return
    _show(found, console)
    console.print(f"written to {out} in {found.seconds / 60:.1f} minutes; use it with --preset {out}")


def _check_plot(plot: Path | None) -> None:
    """Refuse a plot that cannot be drawn, before hours are spent on the calibration."""
    if plot is None:
        return
    if plot.suffix not in _PLOTS:
        raise ConfigError(f"--plot {plot} has no known file type.", hint=f"Use one of {', '.join(_PLOTS)}.")
    from betaedit.reports.figures import need_matplotlib

    need_matplotlib()


def _show(found: Calibration, console: Any) -> None:
    chosen = found.best.values["layers"]
    console.print(
        _bars(
            f"causal tracing: answer {found.trace.intact:.0%}, with noise {found.trace.blurred:.0%}; restored by",
            [(f"layer {layer}", value, layer in chosen) for layer, value in enumerate(found.trace.effects)],
        )
    )
    console.print(_trials_table(found))
    scores = zip(found.trials[1:], found.scores(), strict=True)
    console.print(_bars("score", [(f"trial {trial.number}", s, trial is found.best) for trial, s in scores]))
    if found.check:
        console.print(_check_table(found))


def _bars(title: str, rows: list[tuple[str, float, bool]]) -> Table:
    """Values as bars from zero, the chosen ones colored."""
    from rich.table import Table

    table = Table(title=title, box=None, title_justify="left", show_header=False, padding=(0, 1))
    longest = max([value for _, value, _ in rows if isfinite(value)], default=0.0)
    for name, value, chosen in rows:
        share = max(value, 0.0) / longest if isfinite(value) and longest > 0 else 0.0
        bar = "█" * round(_BAR * share)
        table.add_row(name, f"[{'green' if chosen else 'dim'}]{bar}[/]", _plain(value))
    return table


def _trials_table(found: Calibration) -> Table:
    """One row per trial, at most 80 characters wide."""
    from rich import box
    from rich.table import Table

    table = Table("#", *_SETTINGS.values(), box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in ("eff.", "gen.", "spec.", "ppl", "score"):
        table.add_column(name, justify="right")
    table.caption = "efficacy, generality, specificity: probability/argmax in percent; # 0 is the unedited model"
    for trial, score in zip(found.trials, [None, *found.scores()], strict=True):
        settings = [_setting(trial.values.get(name)) for name in _SETTINGS]
        figures = [trial.efficacy, trial.generality, trial.specificity]
        style = "bold green" if trial is found.best else None
        row = [*map(_percent, figures), f"{trial.perplexity:.1f}", _plain(score)]
        table.add_row(str(trial.number), *settings, *row, style=style)
    return table


def _check_table(found: Calibration) -> Table:
    from rich.table import Table

    from betaedit.cli.render import both_forms

    table = Table(title=f"the best setting on {found.setup.data['check']} other facts")
    for name in ("", "efficacy", "generality", "specificity", "perplexity", "s/edit"):
        table.add_column(name, justify="right")
    for name, trial in zip(("before", "after"), found.check, strict=True):
        figures = (trial.efficacy, trial.generality, trial.specificity)
        table.add_row(name, *map(both_forms, figures), f"{trial.perplexity:.2f}", f"{trial.seconds_per_edit:.1f}")
    return table


def _percent(figure: EditFigure) -> str:
    return "/".join("-" if mean is None else f"{100 * mean.mean:.0f}" for mean in (figure.probability, figure.argmax))


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]}-{value[-1]}"
    return "-" if value is None else f"{value:g}"


def _plain(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}" if isfinite(score) else "failed"
