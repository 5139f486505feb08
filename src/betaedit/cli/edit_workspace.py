"""``betaedit edit`` in a workspace: facts are written into it, each stored as soon as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from betaedit.cli import options
from betaedit.cli.held import require_held, say_held, show_held
from betaedit.cli.plan import show_plan

if TYPE_CHECKING:
    from betaedit.facts.fact import EvaluationCase

_BEFORE_TOKENS = 8


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
    fail_under: float | None = None,
    everything: bool = False,
) -> None:
    """Write ``cases`` into the workspace ``place``; of cases from a ``source``, those that it does not hold yet."""
    from rich.console import Console

    from betaedit.cli.render import Bars, corrected_facts, counted, figures_table, say
    from betaedit.evaluation.continuing import complete_greedily
    from betaedit.evaluation.metrics import measure_edits
    from betaedit.experiments.figures import edit_figures
    from betaedit.experiments.run import count_held, measure_held
    from betaedit.facts.corrections import corrected_later
    from betaedit.facts.sources import source_name
    from betaedit.ledger.workspace import Workspace

    console = Console(stderr=json_)
    options.quiet_libraries()
    with Workspace.open(place, write=True, device=device, progress=Bars(console)) as workspace:
        fresh = cases if source is None else workspace.new(cases)
        if passed := len(cases) - len(fresh):
            say(console, f"{passed} of {counted(len(cases), 'fact')} skipped: already written")
        editor = workspace.editor
        if plan:
            show_plan(editor, fresh, console, json_=json_)
            return
        prompts = [] if json_ else [case.fact.text for case in fresh]
        before = complete_greedily(editor.language_model, prompts, _BEFORE_TOKENS, label="asking")
        first = workspace.store.head + 1
        results = workspace.edit(
            fresh, batch_size=batch_size, note={} if source is None else {"from": source_name(source)}
        )
        corrected = corrected_later([case.fact for case in fresh])
        measured = edit_figures(
            measure_edits(editor.language_model, fresh, corrected=corrected, progress=editor.progress)
        )
        figures = {name: figure.model_dump(mode="json") for name, figure in measured.items()}
        holdings = measure_held(editor, results)
        if save is not None:
            editor.save_pretrained(save)  # before anything is shown, which may fail
        if json_:
            options.print_json(
                {
                    "workspace": str(place),
                    "edits": len(results),
                    "held": count_held(results, holdings),
                    "passed_over": passed,
                    "events": [first, workspace.store.head] if results else None,
                    "live": len(workspace.store.live()),
                    **figures,
                    "corrected": sum(corrected),
                    "results": [result.to_dict() for result in results],
                }
            )
        elif fresh:
            show_held(console, results, holdings, before, everything=everything)
            console.print(figures_table("these facts", len(results), figures))
            if any(corrected):
                say(console, corrected_facts(sum(corrected)))
            kept = sum(result.kept for result in results)
            say(console, f"{counted(kept, 'edit')} kept in {place}; betaedit log lists them")
        if save is not None:
            say(console, f"saved to {save}")
        if results:
            require_held(say_held(console, results, holdings), fail_under)
