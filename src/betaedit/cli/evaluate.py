"""``betaedit eval``: the figures of a model, an edited folder, an adapter or a run, without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from betaedit.cli import options


def evaluate(
    model: Annotated[
        str, typer.Argument(help="smollm2, a model folder, an adapter, a run folder, or a Hugging Face id.")
    ],
    source: Annotated[Path, typer.Option("--from", help="Facts with the prompts to measure on.")],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first facts of the file.")] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Held-out text for the perplexity; the package's own by default.")
    ] = None,
    also: options.AlsoOption = "",
    tasks: options.TasksOption = None,
    n_tests: options.TestsOption = 100,
    judge: options.JudgeOption = None,
    judge_model: options.JudgeModelOption = None,
    json_: options.JsonOption = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
) -> None:
    """Measure a model on facts and their prompts; nothing is changed."""
    from rich.console import Console

    from betaedit.cli.render import Bars, figures_table
    from betaedit.experiments.figures import measure_model
    from betaedit.experiments.target import load_target
    from betaedit.facts.readers import read_cases

    measures = options.measures(text, also, tasks, n_tests, judge, judge_model)
    cases = list(read_cases(source, limit=limit).cases)
    console = Console(stderr=json_)
    options.quiet_libraries()
    loaded = load_target(model, dtype=dtype, device=device)
    found = measure_model(loaded, cases, measures, progress=Bars(console))
    if json_:
        options.print_json({"model": model, "source": str(source), "records": len(cases), **found})
        return
    console.print(figures_table(model, len(cases), found))
