"""``betaedit edit``: write one fact typed on the command line, or a file of them, and measure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

_SHOWN = 10

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from betaedit.editors.editor import Editor
    from betaedit.experiments.run import RunReport
    from betaedit.facts.fact import EvaluationCase


def edit(
    prompt: Annotated[
        str | None, typer.Argument(help='The prompt, its subject in brackets: "The capital of [Japan] is".')
    ] = None,
    target: Annotated[str | None, typer.Argument(help="What the model shall answer.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Facts: own JSONL or CSV, or a published format; .gz; dataset:OWNER/NAME."),
    ] = None,
    true: Annotated[str | None, typer.Option("--true", help="What the model answers today, for comparison.")] = None,
    method: options.MethodOption = "betaedit",
    model: options.ModelOption = "smollm2",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Facts solved together.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first facts of the file.")] = None,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    statistics: options.StatisticsOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be written, and change nothing.")] = False,
    json_: options.JsonOption = False,
    save: Annotated[Path | None, typer.Option("--save", help="Write the edited model to this folder.")] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Held-out text for the perplexity; the package's own by default.")
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out records that cannot be used, and list them.")
    ] = False,
    zsre_target: Annotated[
        Literal["alt", "answers"], typer.Option("--zsre-target", help="Which field of a zsRE record is written.")
    ] = "alt",
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the run in this folder; the same command continues it.")
    ] = None,
    evaluate_at: Annotated[
        str, typer.Option("--evaluate-at", help="Measure after so many edits too: 30,300,1000.")
    ] = "",
    on_collapse: Annotated[
        Literal["ignore", "warn", "stop"], typer.Option("--on-collapse", help="When a measurement finds it collapsed.")
    ] = "warn",
    also: options.AlsoOption = "",
    tasks: options.TasksOption = None,
    n_tests: options.TestsOption = 100,
    judge: options.JudgeOption = None,
    judge_model: options.JudgeModelOption = None,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    device_map: options.DeviceMapOption = None,
) -> None:
    """Write facts into a model, one after another, and say what that did.

    The fact is typed with its subject in brackets, or facts are read with --from FILE. The model in memory is always
    changed; --save keeps it. With --out, edits and figures are on disk as they are made, `betaedit report` draws them,
    and an interrupted run goes on where it was.
    """
    values = options.overrides(config, set_, seed)
    cases = _cases(prompt, target, true, source, limit, skip_invalid, zsre_target)
    _check_save(save)
    measures = options.measures(text, also, tasks, n_tests, judge, judge_model)
    counts = options.numbers("--evaluate-at", evaluate_at)
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.experiments.run import run_edits

    console = Console(stderr=json_)
    editor = options.load_editor(
        model,
        method,
        dtype=dtype,
        device=device,
        device_map=device_map,
        preset=preset,
        values=values,
        statistics=statistics,
        progress=Bars(console),
    )
    if plan:
        _show_plan(editor, cases, console, json_=json_)
        return
    run = partial(
        run_edits,
        batch_size=batch_size,
        evaluate_at=counts,
        measures=measures,
        folder=out,
        source=None if source is None else str(source),
        on_collapse=on_collapse,
    )
    _show_run(run, editor, cases, console, json_=json_)
    if save is not None:
        editor.save_pretrained(save)
        console.print(f"saved to {save}")


def _cases(
    prompt: str | None,
    target: str | None,
    true: str | None,
    source: Path | None,
    limit: int | None,
    skip_invalid: bool,
    zsre_target: Literal["alt", "answers"],
) -> list[EvaluationCase]:
    from betaedit.facts.fact import EvaluationCase, Fact
    from betaedit.facts.readers import read_cases

    if source is None:
        if prompt is None or target is None:
            raise ConfigError(
                "there is nothing to write.",
                mend='Type a fact: betaedit edit "The capital of [Japan] is" "Madrid", or give --from FILE.',
            )
        return [EvaluationCase(Fact.from_bracketed(prompt, target, true))]
    if prompt is not None or true is not None:
        raise ConfigError("a typed fact (and --true) and --from exclude each other.", mend="Give one of them.")
    facts = read_cases(source, limit=limit, skip_invalid=skip_invalid, zsre_target=zsre_target)
    for rejected in facts.rejected:
        typer.echo(f"left out: {rejected.error}", err=True)
    return list(facts.cases)


def _check_save(folder: Path | None) -> None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--save {folder} exists and is not empty.", mend="Name a new folder.")


def _show_plan(editor: Editor, cases: list[EvaluationCase], console: Console, *, json_: bool) -> None:
    from betaedit.cli.render import highlighted

    plans = editor.plan(cases)
    if json_:
        options.print_json(
            {"plan": [plan.to_dict() for plan in plans], "config": editor.config.model_dump(mode="json")}
        )
        return
    for plan in plans:
        console.print(highlighted(plan))
    console.print(
        f"{len(plans)} facts, layers {list(editor.config.layers)}, method {editor.recipe.name}; nothing changed"
    )


def _show_run(
    run: Callable[[Editor, list[EvaluationCase]], RunReport],
    editor: Editor,
    cases: list[EvaluationCase],
    console: Console,
    *,
    json_: bool,
) -> None:
    from betaedit.cli.render import answers_table, summary_table

    shown = [case.fact for case in cases[:_SHOWN]]
    before = [] if json_ else [editor.complete(fact.text) for fact in shown]
    report = run(editor, cases)
    if json_:
        options.print_json(report.to_dict())
        return
    console.print(answers_table(shown, before, [editor.complete(fact.text) for fact in shown]))
    console.print(summary_table(report))
    if report.folder is not None:
        console.print(f"kept in {report.folder}; draw it with: betaedit report {report.folder}")
