"""``betaedit eval``: the figures of a model, an edited folder, an adapter, a run or a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betaedit.cli import options

if TYPE_CHECKING:
    from betaedit.models.load import LanguageModel


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model (smollm2, a folder, a Hugging Face id), an adapter, a run, or a workspace.")
    ],
    source: options.FactsOption,
    limit: options.LimitOption = None,
    text: options.TextOption = None,
    also: options.AlsoOption = "",
    tasks: options.TasksOption = None,
    n_tests: options.TestsOption = 100,
    judge: options.JudgeOption = None,
    judge_model: options.JudgeModelOption = None,
    harness: Annotated[
        str,
        typer.Option(
            "--harness", help="Tasks of lm-evaluation-harness, e.g. hellaswag,arc_easy; betaedit_sst2 works offline."
        ),
    ] = "",
    statistics: options.StatisticsOption = None,
    json_: options.JsonOption = False,
    dtype: options.OwnDtypeOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Measure a model on facts and their prompts; nothing is changed."""
    from rich.console import Console

    from betaedit.cli.render import Bars, corrected_facts, figures_table
    from betaedit.experiments.figures import measure_model
    from betaedit.experiments.target import load_target
    from betaedit.facts.readers import read_cases
    from betaedit.facts.sources import source_name
    from betaedit.models.machine import describe_machine
    from betaedit.versions import library_versions

    measures = options.measures(text, also, tasks, n_tests, judge, judge_model, by_harness=bool(harness))
    cases = list(read_cases(source, limit=limit).cases)
    console = Console(stderr=json_)
    options.quiet_libraries()
    loaded = load_target(model, statistics=statistics, dtype=dtype, device=device)
    found = measure_model(loaded, cases, measures, progress=Bars(console))
    by_harness = _by_harness(loaded, options.names(harness), tasks, n_tests)
    if json_:
        asked = {
            "model": model,
            "source": source_name(source),
            "records": len(cases),
            "measured": measures.describe(cases, followed=False),
        }
        machine = {"versions": library_versions(), "machine": describe_machine(loaded)}
        options.print_json({**asked, **machine, **found, **by_harness})
        return
    plain = {
        f"{task}, {name.partition(',')[0]}": value
        for task, values in by_harness.get("harness", {}).get("results", {}).items()
        for name, value in values.items()
        if isinstance(value, float)
    }
    corrected = found.pop("corrected")
    console.print(figures_table(model, len(cases), {**found, **plain}))
    if corrected:
        console.print(corrected_facts(corrected))


def _by_harness(model: LanguageModel, names: tuple[str, ...], folder: Path | None, n_tests: int) -> dict[str, Any]:
    """The results of lm-evaluation-harness under ``harness``; empty without tasks."""
    if not names:
        return {}
    from betaedit.evaluation.harness import run_harness

    return {"harness": run_harness(model, names, folder=folder, n_tests=n_tests)}
