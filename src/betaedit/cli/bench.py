"""``betaedit bench``: this engine and the published procedure on the same work, in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from betaedit.benchmarks.peak import Peak
    from betaedit.benchmarks.rows import Row

NAMES = ("solve", "value", "edit", "statistics", "growth", "memory", "ledger", "shape")
_WHEN_ASKED = "shape"
_MIB = 2**20


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which of {', '.join(NAMES)}; default: all but {_WHEN_ASKED}.")
    ] = None,
    model: options.ModelOption = "smollm2",
    widths: Annotated[str, typer.Option("--widths", help="Key widths for solve; the first for growth.")] = "1536,4096",
    file: Annotated[
        Path | None, typer.Option("--from", help="Facts for value and edit; default: those of the demo.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of facts.")] = 5,
    n_edits: Annotated[
        int, typer.Option("--edits", min=200, help="Number of edits in the ledger of the benchmark ledger.")
    ] = 10_000,
    like: Annotated[
        str,
        typer.Option(
            "--shape", help="Model whose shape the random model of the benchmark shape has: llama-1b or llama-8b."
        ),
    ] = "llama-1b",
    depth: Annotated[
        int | None, typer.Option("--depth", min=2, help="Number of layers of that random model; default: all.")
    ] = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    runner: options.RunnerOption = "auto",
) -> None:
    """Time this engine against the published procedure, on the same work in one run.

    The reference does whole forward passes and dense solves, as the papers' code does. The floor is the time
    that the machine needs for the bytes or operations alone (docs/benchmarks.md). memory, ledger and shape have no
    reference.
    """
    wanted = names or [name for name in NAMES if name != _WHEN_ASKED]
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise ConfigError(f"there is no benchmark {unknown[0]!r}.", hint=f"Choose from {', '.join(NAMES)}.")
    import torch
    from rich.console import Console

    from betaedit.benchmarks import measure
    from betaedit.benchmarks.ledger import ledger
    from betaedit.benchmarks.peak import measure_peak
    from betaedit.benchmarks.rows import machine
    from betaedit.benchmarks.shape import STORED_AS, find_shape, shape
    from betaedit.cli.render import Bars
    from betaedit.facts.readers import demo_path, read_cases
    from betaedit.models.load import load_language_model, usable_device

    all_widths = options.numbers("--widths", widths)
    values = options.overrides(config, set_, None)
    place = usable_device(device)
    facts = [case.fact for case in read_cases(file or demo_path(), limit=limit).cases]
    console = Console(stderr=json_)
    alone = [("solve", f"solve, width {width}", partial(measure.solve, width, device=place)) for width in all_widths]
    alone.append(("growth", "growth, 10,000 updates", partial(measure.growth, all_widths[0], device=place)))
    rows = [row for name, title, work in alone if name in wanted for row in _timed(title, work)]
    peak: Peak | None = None
    if "shape" in wanted:
        random = find_shape(like, depth)
        options.quiet_libraries()
        tokenizer = load_language_model(model).tokenizer
        kind = STORED_AS if dtype == "auto" else getattr(torch, dtype)
        made = partial(shape, random, tokenizer, facts, dtype=kind, device=place, progress=Bars(console), **values)
        rows += _timed(f"shape, a random model like {like}", lambda: [made()])
    if {"value", "edit", "statistics", "memory", "ledger"} & set(wanted):
        editor = options.load_editor(
            model,
            "betaedit",
            dtype=dtype,
            device=device,
            device_map=None,
            runner=runner,
            preset=preset,
            values=values,
            statistics=None,
            progress=Bars(console),
        )
        editor.prepare()
        with_model = (
            ("value", f"value, {len(facts)} facts", partial(measure.value, editor, facts)),
            ("edit", f"edit, {len(facts)} facts", partial(measure.edit, editor, facts)),
            ("statistics", "statistics", partial(measure.statistics, editor)),
            ("ledger", f"ledger, {n_edits:,} edits", partial(ledger, editor, n_edits=n_edits)),
        )
        rows += [row for name, title, work in with_model if name in wanted for row in _timed(title, work)]
        if "memory" in wanted:
            typer.echo("memory, in a separate process ...", err=True)
            peak = measure_peak(facts, name=model, dtype=dtype, device=device, preset=preset, **values)
    if json_:
        memory = {} if peak is None else {"memory": asdict(peak)}
        options.print_json({"rows": [row.to_dict() for row in rows], **memory, "machine": machine(place)})
    else:
        _draw(rows, peak, console)


def _timed(what: str, work: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a benchmark, which is reported on stderr before and after."""
    typer.echo(f"{what} ...", err=True)
    started = monotonic()
    rows = work()
    typer.echo(f"{what}: {len(rows)} rows in {monotonic() - started:.1f} s", err=True)
    return rows


def _draw(rows: list[Row], peak: Peak | None, console: Console) -> None:
    console.print(_table(rows))
    if peak is not None:
        sizes = {name: f"{held / _MIB:.0f} MiB" for name, held in asdict(peak).items()}
        console.print("peak memory: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))


def _table(rows: list[Row]) -> Table:
    from rich.table import Table

    says = "relative error: of our result against the reference's; floor: the least time that the machine needs"
    table = Table("benchmark", "ours", "reference", "ratio", "relative error", "floor", caption=says)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.ours_seconds:.4g} s",
            *(
                "-" if value is None else form.format(value)
                for value, form in (
                    (row.reference_seconds, "{:.4g} s"),
                    (row.ratio, "{:.1f}x"),
                    (row.relative_error, "{:.1e}"),
                    (row.floor_seconds, "{:.4g} s"),
                )
            ),
        )
    return table
