"""``betaedit edit`` in a workspace: facts are written into it, each kept as soon as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from betaedit.cli import options
from betaedit.cli.plan import show_plan

if TYPE_CHECKING:
    from betaedit.facts.fact import EvaluationCase

_SHOWN = 10


def edit_workspace(
    place: Path,
    cases: list[EvaluationCase],
    source: Path | None,
    *,
    batch_size: int,
    plan: bool,
    save: Path | None,
    device: str | None,
    json_: bool,
) -> None:
    """Write ``cases`` into the workspace ``place``; of a ``source``, those that it has not been given yet."""
    from rich.console import Console

    from betaedit.cli.render import Bars, answers_table, corrected_facts, counted, figures_table, say
    from betaedit.evaluation.metrics import measure_edits
    from betaedit.experiments.figures import edit_figures
    from betaedit.facts.corrections import corrected_later
    from betaedit.facts.sources import source_name
    from betaedit.ledger.workspace import Workspace

    console = Console(stderr=json_)
    options.quiet_libraries()
    with Workspace.open(place, write=True, device=device, progress=Bars(console)) as workspace:
        fresh = cases if source is None else workspace.new(cases)
        if passed := len(cases) - len(fresh):
            say(console, f"{passed} of {counted(len(cases), 'fact')} passed over: written already")
        editor = workspace.editor
        if plan:
            show_plan(editor, fresh, console, json_=json_)
            return
        shown = [case.fact for case in fresh[:_SHOWN]]
        before = [] if json_ else [editor.complete(fact.text) for fact in shown]
        first = workspace.store.head + 1
        results = workspace.edit(
            fresh, batch_size=batch_size, note={} if source is None else {"from": source_name(source)}
        )
        corrected = corrected_later([case.fact for case in fresh])
        measured = edit_figures(
            measure_edits(editor.language_model, fresh, corrected=corrected, progress=editor.progress)
        )
        figures = {name: figure.model_dump(mode="json") for name, figure in measured.items()}
        if save is not None:
            editor.save_pretrained(save)  # before anything is shown, which may fail
        if json_:
            options.print_json(
                {
                    "workspace": str(place),
                    "edits": len(results),
                    "passed_over": passed,
                    "events": [first, workspace.store.head] if results else None,
                    "live": len(workspace.store.live()),
                    **figures,
                    "corrected": sum(corrected),
                    "results": [result.to_dict() for result in results],
                }
            )
        elif fresh:
            console.print(answers_table(shown, before, [editor.complete(fact.text) for fact in shown]))
            console.print(figures_table("these facts", len(results), figures))
            if any(corrected):
                say(console, corrected_facts(sum(corrected)))
            say(console, f"{counted(len(results), 'edit')} kept in {place}; betaedit log lists them")
        if save is not None:
            say(console, f"saved to {save}")
