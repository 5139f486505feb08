"""``betaedit edit``: write one fact typed on the command line, or a file of them, and measure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from betaedit.cli import options
from betaedit.cli.held import require_held, say_held, show_held
from betaedit.cli.plan import show_plan
from betaedit.errors import ConfigError, FactError

_BEFORE_TOKENS = 8
_OF_THE_FACTS = {"prompt", "target", "source", "true", "limit", "skip_invalid", "zsre_target"}
_IN_A_WORKSPACE = _OF_THE_FACTS | {
    *("quick", "workspace", "batch_size", "plan", "save", "device", "json_", "fail_under", "all_"),
}

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from betaedit.editors.editor import Editor
    from betaedit.experiments.run import RunReport
    from betaedit.facts.fact import EvaluationCase


def edit(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help='The prompt, its subject in brackets: "The capital of [Japan] is".')
    ] = None,
    target: Annotated[str | None, typer.Argument(help="The answer the model should give.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A file of facts: own JSONL or CSV, or a published format; .gz; - (a pipe); dataset:OWNER/NAME.",
        ),
    ] = None,
    true: Annotated[str | None, typer.Option("--true", help="The model's present answer, for comparison.")] = None,
    method: options.ChosenMethodOption = None,
    model: options.ModelOption = "smollm2",
    batch_size: options.BatchSizeOption = 1,
    limit: options.LimitOption = None,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    statistics: options.StatisticsOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be written; change nothing.")] = False,
    json_: options.JsonOption = False,
    save: Annotated[Path | None, typer.Option("--save", help="Write the edited model to this folder.")] = None,
    text: options.TextOption = None,
    skip_invalid: options.SkipInvalidOption = False,
    zsre_target: options.ZsreTargetOption = "alt",
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the run in this folder; the same command continues it.")
    ] = None,
    reset_every: options.ResetEveryOption = None,
    evaluate_at: options.EvaluateAtOption = "",
    on_collapse: Annotated[
        Literal["ignore", "warn", "stop"],
        typer.Option("--on-collapse", help="What to do if a measurement finds that the model has collapsed."),
    ] = "warn",
    also: options.AlsoOption = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not measure drift: perplexity, agreement, leakage.")
    ] = False,
    tasks: options.TasksOption = None,
    n_tests: options.TestsOption = 100,
    judge: options.JudgeOption = None,
    judge_model: options.JudgeModelOption = None,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    device_map: options.DeviceMapOption = None,
    runner: options.RunnerOption = "auto",
    workspace: options.WorkspaceOption = None,
    form: options.FormOption = None,
    paraphrases: options.ParaphrasesOption = None,
    keep_missed: Annotated[
        bool, typer.Option("--keep-missed", help="Keep an edit even if the model does not give its answer.")
    ] = False,
    fail_under: options.FailUnderOption = None,
    all_: options.AllOption = False,
) -> None:
    """Write facts into a model, one after another, and measure the result.

    Type one fact with its subject in brackets, or read facts with --from FILE. Only the model in memory is changed;
    --save writes it to disk. With --out, edits and figures are saved as they are made, `betaedit report` draws them,
    and the same command continues an interrupted run. In a workspace (`betaedit init`), facts go into the workspace;
    facts that it already holds are skipped.
    """
    if (place := _workspace(ctx, workspace, out)) is not None:
        from betaedit.cli.edit_workspace import edit_workspace

        cases, _, refused = _cases(prompt, target, true, source, limit, skip_invalid, zsre_target, plan)
        options.check_new("--save", save)
        edit_workspace(
            place,
            cases,
            source,
            batch_size=batch_size,
            plan=plan,
            save=save,
            device=device,
            fail_under=fail_under,
            everything=all_,
            json_=json_,
        )
        _refuse(refused)
        return
    chosen_method, values = options.choose(method, config, set_, seed)
    chosen = {"form": form, "paraphrases": paraphrases, "keep_missed": keep_missed or None}
    values |= {name: value for name, value in chosen.items() if value is not None}
    cases, format_name, refused = _cases(prompt, target, true, source, limit, skip_invalid, zsre_target, plan)
    options.check_new("--save", save)
    if save is not None and reset_every is not None:
        raise ConfigError(
            "--save and --reset-every cannot be combined: no model holds all facts.", hint="Leave out one of them."
        )
    if quick and out is not None:
        raise ConfigError("--out and --quick cannot be combined.", hint="Leave out one of them.")
    measures = options.measures(text, also, tasks, n_tests, judge, judge_model, quick=quick)
    counts = options.numbers("--evaluate-at", evaluate_at)
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.experiments.groups import check_group_size
    from betaedit.experiments.run import measuring_points, run_edits
    from betaedit.facts.formats import OWN_FORMATS
    from betaedit.facts.sources import source_name

    check_group_size(reset_every, batch_size)
    measuring_points(counts, len(cases), reset_every or batch_size)
    console = Console(stderr=json_)
    editor = options.load_editor(
        model,
        chosen_method,
        dtype=dtype,
        device=device,
        device_map=device_map,
        runner=runner,
        preset=preset,
        values=values,
        statistics=statistics,
        progress=Bars(console),
        own_facts=format_name in OWN_FORMATS,
    )
    if plan:
        show_plan(editor, cases, console, json_=json_)
        _refuse(refused)
        return
    run = partial(
        run_edits,
        batch_size=batch_size,
        reset_every=reset_every,
        evaluate_at=counts,
        measures=measures,
        folder=out,
        source=None if source is None else source_name(source),
        on_collapse=on_collapse,
    )
    share = _show_run(run, editor, cases, console, save, everything=all_, json_=json_)
    require_held(share, fail_under)


def _workspace(ctx: typer.Context, named: Path | None, out: Path | None) -> Path | None:
    """The workspace to write into, if any.

    Raises:
        ConfigError: An option was given that the workspace itself decides, or for which there are other commands.
    """
    from betaedit.ledger.place import current_workspace, find_workspace

    if named is None and (out is not None or current_workspace() is None):
        return None
    place = find_workspace(named)
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "")
        if parameter.name not in _IN_A_WORKSPACE and given is not None and given.name == "COMMANDLINE":
            raise ConfigError(
                f"{parameter.opts[0]} cannot be used in a workspace ({place}).",
                hint="Leave it out: the workspace sets model and method; `betaedit check` and `betaedit eval` measure.",
            )
    return place


def _cases(
    prompt: str | None,
    target: str | None,
    true: str | None,
    source: Path | None,
    limit: int | None,
    skip_invalid: bool,
    zsre_target: Literal["alt", "answers"],
    plan: bool,
) -> tuple[list[EvaluationCase], str, list[FactError]]:
    """The facts to write, their format, and the errors of the records that cannot be used.

    With ``plan``, the usable records are shown before these errors are raised.
    """
    from betaedit.facts.fact import EvaluationCase, Fact
    from betaedit.facts.hints import refuse_placeholder
    from betaedit.facts.readers import read_cases

    if source is None:
        if prompt is None or target is None:
            raise ConfigError(
                "there is nothing to write.",
                hint='Type a fact: betaedit edit "The capital of [Japan] is" "Madrid", or give --from FILE.',
            )
        refuse_placeholder(target, "target_new")
        refuse_placeholder(true or "", "target_true")
        return [EvaluationCase(Fact.from_bracketed(prompt, target, true))], "own", []
    if prompt is not None or true is not None:
        raise ConfigError("a typed fact (or --true) and --from cannot be combined.", hint="Give one of them.")
    facts = read_cases(source, limit=limit, skip_invalid=skip_invalid or plan, zsre_target=zsre_target)
    if not skip_invalid:
        return list(facts.cases), facts.format, [rejected.error for rejected in facts.rejected]
    options.say_skipped(facts.rejected)
    return list(facts.cases), facts.format, []


def _refuse(errors: list[FactError]) -> None:
    """Print the errors of the records that cannot be used; the last is raised as the error of the command."""
    for error in errors[:-1]:
        typer.echo(f"error: {error}", err=True)
    if errors:
        raise errors[-1]


def _show_run(
    run: Callable[[Editor, list[EvaluationCase]], RunReport],
    editor: Editor,
    cases: list[EvaluationCase],
    console: Console,
    save: Path | None,
    *,
    everything: bool,
    json_: bool,
) -> float:
    """Run the edits and return the share of facts held; the model is saved before anything is printed."""
    from betaedit.cli.render import summary_table
    from betaedit.evaluation.continuing import complete_greedily

    if save is not None:
        editor.check_can_be_saved(save)
    prompts = [] if json_ else [case.fact.text for case in cases]
    before = complete_greedily(editor.language_model, prompts, _BEFORE_TOKENS, label="asking")
    report = run(editor, cases)
    if save is not None:
        editor.save_pretrained(save)
    if json_:
        options.print_json(report.to_dict())
    else:
        show_held(console, report.results, report.holdings, before, everything=everything)
        console.print(summary_table(report))
        if report.folder is not None:
            console.print(f"kept in {report.folder}; draw it with: betaedit report {report.folder}")
    if save is not None:
        console.print(f"saved to {save}")
    return say_held(console, report.results, report.holdings)
