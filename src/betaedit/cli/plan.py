"""What ``--plan`` shows: the facts as the model reads them, with nothing changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from betaedit.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from betaedit.editors.editor import Editor
    from betaedit.facts.fact import EvaluationCase


def show_plan(editor: Editor, cases: list[EvaluationCase], console: Console, *, json_: bool) -> None:
    """Each prompt as tokens with its lookup token, and what would be written after it."""
    from betaedit.cli.render import counted, highlighted

    plans = editor.plan(cases)
    if json_:
        options.print_json(
            {"plan": [plan.to_dict() for plan in plans], "config": editor.config.model_dump(mode="json")}
        )
        return
    for plan in plans:
        console.print(highlighted(plan), soft_wrap=True)
    layers = getattr(editor.config, "layers", None)
    where = "" if layers is None else f", layers {list(layers)}"
    console.print(f"{counted(len(plans), 'fact')}{where}, method {editor.method.name}; nothing changed")
